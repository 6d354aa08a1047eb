//! Regions over queue pairs: nothing is copied here, so that what a server does late could show.

use crate::common;
use crate::house::{House, connect};
use forebay_fabric::rdma::fake::FakeProfile;

#[test]
fn regions_keep_their_promises_over_rdma() {
    let house = House::new(20, FakeProfile::kind());
    common::conform(connect(&house, 20), 20);
    assert_eq!(house.borrow().server.as_ref().unwrap().counters().protocol_errors, 0);
}
