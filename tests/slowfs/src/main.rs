//! Mirrors a directory, read-only and as slowly as it is told: `slowfs SOURCE_DIR MOUNT_POINT`.
//!
//! Prints `ready` once the mirror is mounted. SIGTERM and SIGINT unmount it and end the process
//! with 0, also while its files are open.

mod files;
mod orphan;
mod reads;
mod stats;

use clap::Parser;
use files::Mirror;
use fuser::{Config, MountOption, Session};
use nix::{
    mount::{umount2, MntFlags},
    sys::signal::{SigSet, Signal},
};
use reads::{Reads, Slowness};
use std::{
    env,
    error::Error,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{mpsc, Arc},
    thread,
};

type Result<T, E = Box<dyn Error>> = std::result::Result<T, E>;

/// Mirrors a directory, read-only and as slowly as it is told.
///
/// Its root has one file more than the directory, `.slowfs-stats`: what was counted so far, as
/// JSON.
#[derive(Debug, Parser)]
#[command(name = "slowfs")]
struct Options {
    /// The directory to mirror; symbolic links in it are followed
    source_dir: PathBuf,
    /// An empty directory outside of it
    mount_point: PathBuf,
    #[command(flatten)]
    slowness: Slowness,
    /// The largest read the kernel may ask for; it cuts larger ones into several. Above 1 MiB,
    /// the sysctl fs.fuse.max_pages_limit must be raised too
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20,
          value_parser = clap::value_parser!(u32).range(4096..=16 << 20))]
    max_read: u32,
    /// How many reads the kernel has under way at once for readahead and for O_DIRECT together; its
    /// own default, and that of most file systems, is 12
    #[arg(long, value_name = "N", default_value_t = 256,
          value_parser = clap::value_parser!(u16).range(1..))]
    max_background: u16,
    /// Has the kernel keep nothing of any file in the page cache, and read none ahead
    #[arg(long)]
    direct_io: bool,
    /// Has a read with O_DIRECT ask for one piece of --max-read after the other, as with file
    /// systems (gcsfuse is one) that lack FUSE_ASYNC_DIO, and not for all at once
    #[arg(long)]
    no_async_dio: bool,
    /// Where to write what was counted: in the end, and whenever .slowfs-stats is opened
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// Ends as on SIGTERM when standard input does, so as not to outlive who holds its other end
    #[arg(long)]
    exit_on_eof: bool,
}

fn main() -> ExitCode {
    let result = match orphan::mount_point_to_watch(env::args_os()) {
        Some(mount_point) => orphan::watch(&mount_point),
        None => run(&Options::parse()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("slowfs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let (source, mount_point) = directories(options)?;
    // Before any thread starts: all inherit it, and the signals wait for the one that asks.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block()?;

    let reads = Reads::new(options.slowness.clone())?;
    let mirror = Mirror::new(source, Arc::clone(&reads), options);
    let watcher = orphan::Watcher::start(&mount_point)
        .map_err(|error| format!("start the process that unmounts in case of need: {error}"))?;
    let mut session = Session::new(mirror, &mount_point, &mount_config(options))
        .map_err(|error| format!("mount {}: {error}", mount_point.display()))?;
    let mut unmounter = session.unmount_callable();

    let (ended, end) = mpsc::channel();
    let asked = ended.clone();
    thread::spawn(move || {
        let _ = asked.send(signals.wait().map(drop).map_err(io::Error::from));
    });
    if options.exit_on_eof {
        let asked = ended.clone();
        thread::spawn(move || {
            let _ = asked.send(io::copy(&mut io::stdin(), &mut io::sink()).map(drop));
        });
    }
    // Ends by itself when someone else unmounts.
    thread::spawn(move || {
        let _ = ended.send(session.run());
    });

    let mut out = io::stdout();
    // Whoever closed it does not want to know.
    let _ = writeln!(out, "ready").and_then(|()| out.flush());

    let result = end.recv()?;
    if unmounter.unmount().is_err() {
        // Busy: gone from the tree at once, and for those who hold files of it when this process
        // ends.
        umount2(&mount_point, MntFlags::MNT_DETACH)
            .map_err(|error| format!("unmount {}: {error}", mount_point.display()))?;
    }
    if let Some(file) = &options.stats {
        reads.stats.write(file).map_err(|error| format!("write {}: {error}", file.display()))?;
    }
    watcher.dismiss()?;
    Ok(result?)
}

/// The two directories, without links: a mirror of itself would wait for itself forever.
fn directories(options: &Options) -> Result<(PathBuf, PathBuf)> {
    let directory = |path: &Path| match fs::canonicalize(path) {
        Ok(found) if found.is_dir() => Ok(found),
        Ok(_) => Err(format!("{}: not a directory", path.display())),
        Err(error) => Err(format!("{}: {error}", path.display())),
    };
    let source = directory(&options.source_dir)?;
    let mount_point = directory(&options.mount_point)?;
    if source.starts_with(&mount_point) || mount_point.starts_with(&source) {
        let (source, mount_point) = (source.display(), mount_point.display());
        return Err(format!("one of {source} and {mount_point} lies in the other").into());
    }
    Ok((source, mount_point))
}

fn mount_config(options: &Options) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::DefaultPermissions,
        MountOption::FSName("slowfs".to_owned()),
        // As such, fuser passes it on to fusermount only, and /proc/mounts would show plain `fuse`.
        MountOption::CUSTOM("subtype=slowfs".to_owned()),
        MountOption::CUSTOM(format!("max_read={}", options.max_read)),
    ];
    config
}
