//! Carries out a plan: operations of one namespace travel together.

use std::collections::HashMap;

use nix::errno::Errno;

use super::request::{self, Veth};
use super::{Connection, Request, observer};
use crate::error::DatapathError;
use crate::host;
use crate::namespace::Namespace;
use crate::observed::Observed;
use crate::op::{Op, Place};

/// Called between steps that have an effect, with the step's name.
pub type StepHook = fn(&'static str);

/// Sockets of the node and of at most one pod, on a thread that may change namespaces.
#[derive(Debug)]
pub(crate) struct Executor {
    node: (Namespace, Connection),
    pod: Option<(Namespace, Connection)>,
    /// Where the thread is.
    here: Place,
    links: HashMap<(Place, String), u32>,
    steps: Option<StepHook>,
}

struct Pending {
    op: Op,
    request: Request,
}

impl Executor {
    /// Enters the node's namespace.
    pub(crate) fn open(node: &Namespace, steps: Option<StepHook>) -> Result<Self, DatapathError> {
        node.enter()?;
        Ok(Self {
            node: (node.clone(), Connection::open()?),
            pod: None,
            here: Place::Node,
            links: HashMap::new(),
            steps,
        })
    }

    /// Enters the pod's namespace; forgets an earlier pod.
    pub(crate) fn enter_pod(&mut self, pod: Namespace) -> Result<(), DatapathError> {
        pod.enter()?;
        self.here = Place::Pod;
        self.links.retain(|(place, _), _| *place != Place::Pod);
        self.pod = Some((pod, Connection::open()?));
        Ok(())
    }

    /// Moves the thread to a namespace.
    pub(crate) fn go(&mut self, place: Place) -> Result<(), DatapathError> {
        if self.here == place {
            return Ok(());
        }
        match (place, &self.pod) {
            (Place::Node, _) => self.node.0.enter()?,
            (Place::Pod, Some((namespace, _))) => namespace.enter()?,
            (Place::Pod, None) => return Err(no_pod()),
        }
        self.here = place;
        Ok(())
    }

    pub(crate) fn connection(&mut self, place: Place) -> Result<&mut Connection, DatapathError> {
        match place {
            Place::Node => Ok(&mut self.node.1),
            Place::Pod => Ok(&mut self.pod.as_mut().ok_or_else(no_pod)?.1),
        }
    }

    /// Dumps a namespace with these settings, and remembers its links.
    pub(crate) fn observe(
        &mut self,
        place: Place,
        settings: impl IntoIterator<Item = String>,
    ) -> Result<Observed, DatapathError> {
        let mut seen = self.connection(place)?.observe()?;
        self.go(place)?;
        for key in settings {
            if let Some(value) = host::read(&key) {
                seen.settings.insert(key, value);
            }
        }
        self.remember(place, &seen);
        Ok(seen)
    }

    pub(crate) fn remember(&mut self, place: Place, seen: &Observed) {
        let links = seen
            .links
            .iter()
            .map(|l| ((place, l.name.clone()), l.index));
        self.links.extend(links);
    }

    /// Writes a setting where it differs. Says whether it did.
    pub(crate) fn ensure_setting(
        &mut self,
        place: Place,
        key: &str,
        value: &str,
    ) -> Result<bool, DatapathError> {
        self.go(place)?;
        host::ensure(key, value)
    }

    fn step(&self, name: &'static str) {
        if let Some(hook) = self.steps {
            hook(name);
        }
    }

    /// Carries out `ops` in order. Stops behind the batch in which one was refused: what was done
    /// stays, and planning again finds the rest.
    pub(crate) fn run(&mut self, ops: &[Op]) -> Result<(), DatapathError> {
        let mut batch: Vec<Pending> = Vec::new();
        let mut place = Place::Node;
        for op in ops {
            if op.place() != place {
                self.flush(place, &mut batch)?;
                place = op.place();
            }
            match op {
                Op::Set { key, value, .. } => {
                    self.flush(place, &mut batch)?;
                    self.go(place)?;
                    host::write(key, value)?;
                }
                Op::CreateVeth { .. } => {
                    self.flush(place, &mut batch)?;
                    self.create_veth(op)?;
                    self.step("datapath.setup.after_create");
                }
                Op::MoveLink { index, to, .. } => {
                    self.flush(place, &mut batch)?;
                    self.move_link(op, *index, to)?;
                    self.step("datapath.setup.after_move");
                }
                Op::DeleteLink { .. }
                | Op::ReturnLink { .. }
                | Op::SetAlias { .. }
                | Op::SetUp { .. }
                | Op::AddAddress { .. }
                | Op::DelAddress { .. }
                | Op::PutRoute { .. }
                | Op::DelRoute { .. }
                | Op::AddRule { .. }
                | Op::DelRule { .. }
                | Op::PutNeighbour { .. } => {
                    let request = self.request(op)?;
                    batch.push(Pending {
                        op: op.clone(),
                        request,
                    });
                    // Its name may be given to a new link by the next operation.
                    if let Op::DeleteLink { .. } = op {
                        self.flush(place, &mut batch)?;
                    }
                }
            }
        }
        self.flush(place, &mut batch)
    }

    fn index(&self, place: Place, link: &str) -> Result<u32, DatapathError> {
        self.links
            .get(&(place, link.to_owned()))
            .copied()
            .ok_or_else(|| DatapathError::Refused {
                op: format!("{place}: link {link}"),
                errno: Errno::ENODEV,
            })
    }

    fn request(&self, op: &Op) -> Result<Request, DatapathError> {
        Ok(match op {
            Op::DeleteLink { index, .. } => request::delete_link(*index),
            Op::ReturnLink { index, to, .. } => request::move_link(*index, to, &self.node.0),
            Op::SetAlias { link, alias } => {
                request::set_alias(self.index(Place::Node, link)?, alias)
            }
            Op::SetUp { place, link, mtu } => request::set_up(self.index(*place, link)?, *mtu),
            Op::AddAddress { place, link, net } => {
                request::add_address(self.index(*place, link)?, *net)
            }
            Op::DelAddress { place, link, net } => {
                request::delete_address(self.index(*place, link)?, *net)
            }
            Op::PutRoute { place, route } => {
                request::put_route(self.index(*place, &route.link)?, route)
            }
            Op::DelRoute { route } => request::delete_route(route),
            Op::AddRule { rule } => request::add_rule(rule),
            Op::DelRule { rule } => request::delete_rule(rule),
            Op::PutNeighbour {
                place,
                link,
                ip,
                mac,
            } => request::put_neighbour(self.index(*place, link)?, *ip, *mac),
            Op::CreateVeth { .. } | Op::MoveLink { .. } | Op::Set { .. } => {
                return Err(DatapathError::Garbled(format!("{op} is no single request")));
            }
        })
    }

    fn flush(&mut self, place: Place, batch: &mut Vec<Pending>) -> Result<(), DatapathError> {
        if batch.is_empty() {
            return Ok(());
        }
        let (ops, requests): (Vec<_>, Vec<_>) = batch.drain(..).map(|p| (p.op, p.request)).unzip();
        let answers = self.connection(place)?.call(requests)?;
        for (op, answer) in ops.iter().zip(answers) {
            if let Err(errno) = answer.result
                && !is_done_anyway(op, errno)
            {
                return Err(DatapathError::Refused {
                    op: op.to_string(),
                    errno,
                });
            }
        }
        self.step(match place {
            Place::Node => "datapath.setup.after_node",
            Place::Pod => "datapath.setup.after_pod",
        });
        Ok(())
    }

    fn move_link(&mut self, op: &Op, index: u32, to: &str) -> Result<(), DatapathError> {
        let refused = |errno| DatapathError::Refused {
            op: op.to_string(),
            errno,
        };
        let (netns, _) = self.pod.as_ref().ok_or_else(no_pod)?;
        let request = request::move_link(index, to, netns);
        for answer in self.node.1.call(vec![request])? {
            answer.result.map_err(refused)?;
        }
        // Its index may have been taken in the pod.
        let mut found = None;
        for answer in self
            .connection(Place::Pod)?
            .call(vec![request::get_link(to)])?
        {
            answer.result.map_err(refused)?;
            found = answer.message.as_ref().and_then(observer::link).or(found);
        }
        let link = found.ok_or_else(|| DatapathError::Garbled(format!("{op} was not shown")))?;
        self.links.insert((Place::Pod, to.to_owned()), link.index);
        Ok(())
    }

    fn create_veth(&mut self, op: &Op) -> Result<(), DatapathError> {
        let Op::CreateVeth {
            host,
            host_mac,
            pod,
            pod_mac,
            mtu,
        } = op
        else {
            return Ok(());
        };
        let (netns, _) = self.pod.as_ref().ok_or_else(no_pod)?;
        let create = request::create_veth(&Veth {
            host: (host, *host_mac),
            pod: (pod, *pod_mac),
            mtu: *mtu,
            netns,
        });
        let answers = self.node.1.call(vec![create, request::get_link(host)])?;
        let mut found = None;
        for answer in answers {
            answer.result.map_err(|errno| DatapathError::Refused {
                op: op.to_string(),
                errno,
            })?;
            found = answer.message.as_ref().and_then(observer::link).or(found);
        }
        let link = found.ok_or_else(|| DatapathError::Garbled(format!("{op} was not shown")))?;
        let peer = link
            .peer_index
            .ok_or_else(|| DatapathError::Garbled(format!("{op} has no peer")))?;
        self.links.insert((Place::Node, host.clone()), link.index);
        self.links.insert((Place::Pod, pod.clone()), peer);
        Ok(())
    }
}

fn no_pod() -> DatapathError {
    DatapathError::Garbled("an operation in a pod without a pod".to_owned())
}

/// Whether the kernel's refusal means that things are as they should be.
fn is_done_anyway(op: &Op, errno: Errno) -> bool {
    match op {
        Op::DeleteLink { .. } | Op::ReturnLink { .. } => errno == Errno::ENODEV,
        Op::DelAddress { .. } => errno == Errno::EADDRNOTAVAIL,
        Op::DelRoute { .. } => errno == Errno::ESRCH,
        Op::AddRule { .. } => errno == Errno::EEXIST,
        Op::DelRule { .. } => errno == Errno::ENOENT,
        Op::CreateVeth { .. }
        | Op::MoveLink { .. }
        | Op::SetAlias { .. }
        | Op::SetUp { .. }
        | Op::Set { .. }
        | Op::AddAddress { .. }
        | Op::PutRoute { .. }
        | Op::PutNeighbour { .. } => false,
    }
}
