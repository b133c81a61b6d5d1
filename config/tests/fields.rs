//! What the README says about fields is what the schema says.

#[test]
fn the_table_of_the_readme_is_that_of_the_schema() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(path).expect("the README is there");
    let table = isthmus_config::feature_table();
    assert!(
        readme.contains(&table),
        "the README should have this table:\n{table}"
    );
}
