//! The daemon of Forebay.

fn main() {}
