//! Numbers of the things that expressions load.

use crate::error::DecodeError;

macro_rules! numbers {
    ($(#[$meta:meta])* $name:ident, $what:literal { $($(#[$doc:meta])* $variant:ident = $number:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// All of them, in the kernel's order.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The kernel's number.
            pub const fn number(self) -> u32 {
                match self {
                    $(Self::$variant => $number,)*
                }
            }

            pub(crate) const fn from_number(number: u32) -> Result<Self, DecodeError> {
                Ok(match number {
                    $($number => Self::$variant,)*
                    _ => return Err(DecodeError::Value { what: $what }),
                })
            }
        }
    };
}

numbers! {
    /// What `meta` knows.
    ///
    /// Source: `enum nft_meta_keys`.
    MetaKey, "meta key" {
        /// Length of the packet in bytes; host order, four bytes.
        Length = 0,
        /// EtherType; network order, two bytes.
        Protocol = 1,
        /// Packet mark; host order, four bytes.
        Mark = 3,
        /// Index of the input interface, 0 for packets of this host; host order, four bytes.
        Iif = 4,
        /// Index of the output interface; host order, four bytes.
        Oif = 5,
        /// Name of the input interface; 16 bytes.
        Iifname = 6,
        /// Name of the output interface; 16 bytes.
        Oifname = 7,
        /// Type of the input interface; host order, two bytes.
        Iiftype = 8,
        /// User of the socket.
        Skuid = 10,
        /// Whether this packet is traced; one byte.
        Nftrace = 12,
        /// 2 for IPv4, 10 for IPv6; one byte.
        Nfproto = 15,
        /// Transport protocol, behind IPv6 extension headers too; one byte.
        L4proto = 16,
        /// Unicast, broadcast, multicast; one byte.
        Pkttype = 19,
        /// Processor; host order, four bytes.
        Cpu = 20,
    }
}

numbers! {
    /// What `ct` knows.
    ///
    /// Source: `enum nft_ct_keys`.
    CtKey, "ct key" {
        /// Bits: 1 invalid, 2 established, 4 related, 8 new, 64 untracked; host order, four bytes.
        State = 0,
        /// 0 original, 1 reply; one byte.
        Direction = 1,
        /// `IPS_*` bits; host order, four bytes.
        Status = 2,
        /// The flow's mark; host order, four bytes.
        Mark = 3,
        /// Time left; host order, four bytes.
        Expiration = 5,
        /// 2 for IPv4, 10 for IPv6; one byte.
        L3protocol = 7,
        /// Transport protocol; one byte.
        Protocol = 10,
        /// Source port; network order, two bytes.
        ProtoSource = 11,
        /// Destination port; network order, two bytes.
        ProtoDestination = 12,
        /// Conntrack zone; host order, two bytes.
        Zone = 17,
        /// IPv4 source; four bytes.
        SourceV4 = 19,
        /// IPv4 destination; four bytes.
        DestinationV4 = 20,
        /// IPv6 source; 16 bytes.
        SourceV6 = 21,
        /// IPv6 destination; 16 bytes.
        DestinationV6 = 22,
        /// The flow's number.
        Id = 23,
    }
}

numbers! {
    /// Where a payload offset counts from.
    ///
    /// Source: `enum nft_payload_bases`.
    PayloadBase, "payload base" {
        /// The Ethernet header.
        LinkLayer = 0,
        /// The IPv4 or IPv6 header.
        Network = 1,
        /// The TCP, UDP, SCTP or ICMP header. A fragment that is not the first has none.
        Transport = 2,
    }
}

numbers! {
    /// How to compare. Order is that of bytes, as in network order.
    ///
    /// Source: `enum nft_cmp_ops`.
    CmpOp, "comparison" {
        /// Equal.
        Eq = 0,
        /// Not equal.
        Neq = 1,
        /// Less.
        Lt = 2,
        /// Less or equal.
        Lte = 3,
        /// Greater.
        Gt = 4,
        /// Greater or equal.
        Gte = 5,
    }
}
