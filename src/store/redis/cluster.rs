//! The nodes of a cluster. All of our keys have one hash tag, hence one owner, and any node says who that is (`MOVED`).

use super::schema;
use super::url::Address;
use ::redis::{Arg, Cmd, ErrorKind, RedisError, ServerErrorKind};

/// The nodes that are configured, and the one that was the owner.
pub struct Nodes {
    configured: Vec<Address>,
    owner: Option<Address>,
    /// Which of the configured ones is asked first: another one each time, since a node that was cut off may be wrong for long.
    first: usize,
}

/// Where a node says that a key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Redirection {
    /// This node owns the slot from now on.
    Moved(Address),
    /// The slot is being moved, and this key is there already, if it is anywhere.
    Ask(Address),
}

/// How often one call is sent on: more often only while nodes contradict each other.
pub const REDIRECTIONS_MAX: usize = 3;

// === impl Nodes ===

impl Nodes {
    pub fn new(configured: &[Address]) -> Self {
        Self { configured: configured.to_vec(), owner: None, first: 0 }
    }

    /// This one was said to be, or has answered as, the owner.
    pub fn set_owner(&mut self, address: Address) {
        self.owner = Some(address);
    }

    /// Whom to ask for the owner, in this order.
    pub fn candidates(&mut self) -> Vec<Address> {
        let first = self.first;
        self.first = (first + 1) % self.configured.len().max(1);
        let turned = self.configured.iter().cycle().skip(first).take(self.configured.len());
        self.owner.take().into_iter().chain(turned.cloned()).collect()
    }
}

// === impl Redirection ===

impl Redirection {
    /// What `teller` said instead of an answer.
    pub fn of(teller: &Address, error: &RedisError) -> Option<Self> {
        let address = Address::told_by(teller, error.redirect_node()?.0)?;
        Some(match error.kind() {
            ErrorKind::Server(ServerErrorKind::Ask) => Self::Ask(address),
            _ => Self::Moved(address),
        })
    }
}

/// Whether a command touches the keys alone that it names, so that a node which has them all may run it while others are still
/// to come. A script that is given the prefix makes names of its own, and would take a key that has not arrived yet for one
/// that does not exist.
pub fn names_its_keys(command: &Cmd) -> bool {
    command.args_iter().all(|arg| arg != Arg::Simple(schema::PREFIX.as_bytes()))
}

/// What a script says that found a key at the other node.
const ELSEWHERE: &str = "non local key";

/// Whether this can only be answered when all keys are at one node again.
pub fn is_being_moved(error: &RedisError) -> bool {
    let kinds = [ServerErrorKind::Ask, ServerErrorKind::TryAgain].map(ErrorKind::Server);
    kinds.contains(&error.kind()) || error.detail().is_some_and(|detail| detail.contains(ELSEWHERE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::redis::parse_redis_value;

    fn error(text: &str) -> RedisError {
        parse_redis_value(format!("-{text}\r\n").as_bytes()).unwrap().extract_error().unwrap_err()
    }

    fn address(port: u16) -> Address {
        Address { host: "10.0.0.1".to_owned(), port }
    }

    #[test]
    fn a_node_says_where_a_slot_is() {
        let told = |text: &str| Redirection::of(&address(1), &error(text));
        assert_eq!(told("MOVED 1 10.0.0.1:2"), Some(Redirection::Moved(address(2))));
        assert_eq!(told("MOVED 1 :2"), Some(Redirection::Moved(address(2))));
        assert_eq!(told("ASK 1 10.0.0.1:3"), Some(Redirection::Ask(address(3))));
        assert_eq!((told("MOVED 1 ?:2"), told("CLUSTERDOWN no"), told("TRYAGAIN no")), (None, None, None));
    }

    #[test]
    fn the_owner_is_asked_first_and_then_each_node_whoever_was_first_before() {
        let mut nodes = Nodes::new(&[address(1), address(2), address(3)]);
        let ports = |nodes: &mut Nodes| nodes.candidates().iter().map(|address| address.port).collect::<Vec<_>>();
        assert_eq!(ports(&mut nodes), [1, 2, 3]);
        nodes.set_owner(address(7));
        assert_eq!(ports(&mut nodes), [7, 2, 3, 1]);
        assert_eq!(ports(&mut nodes), [3, 1, 2]);
    }

    #[test]
    fn a_script_that_makes_names_is_told_from_one_that_is_given_them() {
        let given = super::super::link::script("return 1", &["head", "log"]);
        let mut making = super::super::link::script("return 1", &["head"]);
        making.arg(schema::PREFIX);
        assert!(names_its_keys(&given) && !names_its_keys(&making));
    }

    #[test]
    fn a_slot_between_two_nodes_is_told_from_one_that_is_nowhere() {
        for text in
            ["ASK 1 a:1", "TRYAGAIN no", "ERR Script attempted to access a non local key in a cluster node script: x"]
        {
            assert!(is_being_moved(&error(text)), "{text}");
        }
        for text in ["CLUSTERDOWN no", "MOVED 1 a:1", "ERR no"] {
            assert!(!is_being_moved(&error(text)), "{text}");
        }
    }
}
