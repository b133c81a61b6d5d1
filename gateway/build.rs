//! The build script exists because cargo wants one beside `links`; it does nothing.
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
}
