//! Compiles `proto/` with protox, so that no protoc is needed, and lists the files of `recipes/`.

use std::fmt::Write as _;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=recipes");
    let files = protox::compile(["Model.proto"], ["proto"])?;
    // Ordered maps make the bytes of a model the same every time.
    prost_build::Config::new()
        .btree_map(["."])
        .compile_fds(files)?;
    let list = Path::new(&std::env::var("OUT_DIR")?).join("recipes.rs");
    std::fs::write(list, recipes()?)?;
    Ok(())
}

/// Name and text of every `recipes/NAME.toml`, in name order, as a Rust expression.
fn recipes() -> Result<String, Box<dyn std::error::Error>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir("recipes")? {
        let name = entry?.file_name().into_string();
        let name = name.map_err(|name| format!("recipes/{name:?}: not a name in UTF-8"))?;
        names.extend(name.strip_suffix(".toml").map(str::to_owned));
    }
    names.sort();
    let mut text = String::from("&[\n");
    for name in names {
        writeln!(
            text,
            "({name:?}, include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), \"/recipes/{name}.toml\"))),"
        )?;
    }
    text.push(']');
    Ok(text)
}
