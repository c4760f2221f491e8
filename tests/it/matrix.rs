//! Every protocol towards clients with every protocol towards upstreams.

use crate::proofs::matrix;

#[test]
fn whatever_is_spoken_on_either_side_the_same_arrives() {
    matrix::prove(16 * 1024 * 1024);
}
