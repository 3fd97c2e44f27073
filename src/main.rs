//! The `gemma-coreml` program; everything is in the library.

fn main() {
    std::process::exit(gemma_coreml::cli::run(std::env::args_os()));
}
