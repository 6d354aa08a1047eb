//! `forebayd`: the daemon's command line.

use anyhow::{Context, anyhow, bail};
use clap::{ArgGroup, Parser};
use forebay_config::{Config, Listen, LogFormat};
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// Serves a key-value namespace and a checkpoint store from devices that it owns.
#[derive(Debug, Parser)]
#[command(name = "forebayd", version)]
#[command(group(ArgGroup::new("what").required(true).args(["config", "check", "dev"])))]
struct Arguments {
    /// Run with this configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Say what is wrong with this configuration, or "ok", and end
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
    /// Run on a 4 GiB file in this folder, which is made on the first start
    #[arg(long, value_name = "DIR")]
    dev: Option<PathBuf>,
    /// With --dev: listen here instead of 127.0.0.1:7400 (port 0: any free one)
    #[arg(long, value_name = "ADDRESS", requires = "dev")]
    listen: Option<SocketAddr>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(file) = &arguments.check {
        return check(file);
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("forebayd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(file: &std::path::Path) -> ExitCode {
    match Config::load(file) {
        Ok(_) => {
            println!("ok");
            ExitCode::SUCCESS
        }
        Err(problems) => {
            problems.iter().for_each(|problem| println!("{problem}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = configure(arguments)?;
    start_log(&config)?;
    // Its errors are whole sentences already: their sources would only say it twice.
    forebayd::runtime::run(&config).map_err(|error| anyhow!("{error}"))
}

fn configure(arguments: &Arguments) -> anyhow::Result<Config> {
    if let Some(file) = &arguments.config {
        return Config::load(file).or_else(|problems| {
            let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
            bail!("the configuration cannot be used:\n{}", lines.join("\n"))
        });
    }
    let Some(folder) = &arguments.dev else { bail!("give --config, --check or --dev") };
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut config = Config::embedded(folder);
    if let Some(address) = arguments.listen {
        config.listeners = vec![Listen::Tcp { address, preference: 0 }];
    }
    Ok(config)
}

/// Logs to standard error; `RUST_LOG` goes before the configuration's level.
fn start_log(config: &Config) -> anyhow::Result<()> {
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(config.log.level.name());
    if config.log.format == LogFormat::Json {
        builder.format(|out, record| {
            let line = serde_json::json!({
                "time": out.timestamp_micros().to_string(),
                "level": record.level().as_str(),
                "target": record.target(),
                "message": record.args().to_string(),
            });
            writeln!(out, "{line}")
        });
    }
    builder.parse_default_env();
    builder.try_init().context("the log cannot be started")
}
