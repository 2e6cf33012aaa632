//! What the built binary does for somebody who isn't root.

mod aimock;

use lens_tests::lens;

#[test]
fn the_binary_says_its_version() {
    let said = lens().unwrap().arg("--version").output().unwrap();
    assert!(said.status.success(), "{said:?}");
    let wanted = concat!("lens ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(String::from_utf8_lossy(&said.stdout), wanted);
}
