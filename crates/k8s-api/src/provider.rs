//! `spec.providerID` of a Node: which instance it is.

/// The instance in a provider id: `<region>.<instance>`, as Alibaba Cloud's controller manager writes it, or the same
/// behind `alicloud://`. Nothing for those of other clouds and of nodes without an instance.
pub fn instance_of(provider_id: &str) -> Option<&str> {
    let rest = provider_id.strip_prefix("alicloud://");
    let (region, instance) = rest.unwrap_or(provider_id).split_once('.')?;
    let plain = |text: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !text.is_empty() && text.bytes().all(plain)
    };
    let good = plain(region) && plain(instance) && instance.len() > 2 && instance.len() <= 64;
    (good && instance.starts_with("i-")).then_some(instance)
}

#[cfg(test)]
mod tests {
    use super::instance_of;

    #[test]
    fn instance_is_behind_the_region() {
        assert_eq!(instance_of("cn-hangzhou.i-bp1abc"), Some("i-bp1abc"));
        let with_scheme = "alicloud://cn-hangzhou.i-bp1abc";
        assert_eq!(instance_of(with_scheme), Some("i-bp1abc"));
    }

    #[test]
    fn provider_id_of_somebody_else_has_no_instance() {
        for text in [
            "",
            "i-bp1abc",
            "cn-hangzhou.",
            "cn-hangzhou.i-",
            ".i-bp1abc",
            "cn-hangzhou.e01-x",
            "aws:///eu-1a/i-0abc",
            "alicloud://cn-hangzhou.i-a/b",
            "cn-hangzhou.i-a.b",
            "kind://docker/kind/kind-control-plane",
        ] {
            assert_eq!(instance_of(text), None, "{text}");
        }
    }
}
