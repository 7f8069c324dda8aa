//! A small volume of our own that really fills up and really fails: ext4 in a sparse file, on a loop device.

#![allow(clippy::unwrap_used, reason = "a test that can not go on says so and ends")]
#![allow(clippy::disallowed_methods, reason = "real programs take real time")]

use std::{
    fs::{self, File},
    io::Write,
    os::linux::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{Advice, fadvise, statvfs};

use crate::program::{PATIENCE, output_within};

/// While it lives, whatever writes to the volume waits.
pub struct Frozen<'a>(&'a Volume);

/// Mounted while it lives; unmounted and its device given back when dropped.
pub struct Volume {
    image: PathBuf,
    point: PathBuf,
}

// === impl Volume ===

impl Volume {
    /// A fresh one in this folder, mounted at `volume`.
    pub fn new(folder: impl AsRef<Path>, bytes: u64) -> Self {
        let (image, point) = (folder.as_ref().join("image"), folder.as_ref().join("volume"));
        File::create(&image).unwrap().set_len(bytes).unwrap();
        // No share for root, who runs these tests: full is full. No time spent on initialising in the background.
        let options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard";
        run("mkfs.ext4", &["-q", "-b", "4096", "-m", "0", "-J", "size=4", "-E", options, path(&image)]);
        fs::create_dir(&point).unwrap();
        // While nothing is mounted, nobody shall write below the mount point instead.
        run("chattr", &["+i", path(&point)]);
        let volume = Self { image, point };
        volume.mount();
        volume
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// Mounts it again after [`Volume::unmount`].
    pub fn mount(&self) {
        run("mount", &["-o", "loop", path(&self.image), path(&self.point)]);
    }

    /// Unmounts as soon as no process has a file open in it.
    pub fn unmount(&self) {
        let until = Instant::now() + PATIENCE;
        while !Command::new("umount").arg(&self.point).output().unwrap().status.success() {
            assert!(Instant::now() < until, "{} stays in use", self.point.display());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Takes all the room but this much. Whoever removes the file gives it back.
    pub fn fill_but(&self, left_bytes: u64) -> PathBuf {
        let ballast = self.point.join("ballast");
        let mut file = File::options().create(true).append(true).open(&ballast).unwrap();
        let free = || statvfs(&self.point).map(|volume| volume.f_bavail * volume.f_frsize).unwrap();
        // The others write too, so the last block may be gone before it can be taken.
        while free() > left_bytes && file.write_all(&[7; 4096]).is_ok() {}
        ballast
    }

    /// From now on every access to the device fails, and what had not reached it is lost.
    pub fn break_device(&self) {
        run("xfs_io", &["-x", "-c", "shutdown", path(&self.point)]);
    }

    /// From now on whatever writes to it waits, until what this returns is dropped.
    pub fn freeze(&self) -> Frozen<'_> {
        run("fsfreeze", &["-f", path(&self.point)]);
        Frozen(self)
    }

    /// Brings everything to the device.
    pub fn sync(&self) {
        run("sync", &["-f", path(&self.point)]);
    }

    /// Reads of the second half of the file fail from now on, with everything behind it on the device.
    pub fn lose_second_half_of(&self, file: &Path) {
        self.sync();
        let opened = File::open(file).unwrap();
        let block = opened.metadata().unwrap().st_blksize();
        let mut blocks = blocks_of(file);
        blocks.sort_unstable();
        let cut = blocks[blocks.len() / 2];
        File::options().write(true).open(&self.image).unwrap().set_len(cut * block).unwrap();
        // What the kernel has in memory needs no device.
        fadvise(&opened, 0, None, Advice::DontNeed).unwrap();
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        run("fsfreeze", &["-u", path(&self.0.point)]);
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // It may not be mounted any more; the loop device goes with the mount.
        let _ = Command::new("umount").arg("-l").arg(&self.point).output();
        let _ = Command::new("chattr").arg("-i").arg(&self.point).output();
    }
}

/// The blocks of the device that hold the file, a number for each.
fn blocks_of(file: &Path) -> Vec<u64> {
    let listed = run("filefrag", &["-v", path(file)]);
    let mut blocks = Vec::new();
    for line in listed.lines().filter(|line| line.contains("..")) {
        // Such as `   0:        0..    6143:       8993..     15136:   6144:`.
        let numbers: Vec<u64> =
            line.split(|letter: char| !letter.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect();
        blocks.extend(numbers[3]..=numbers[4]);
    }
    blocks
}

fn path(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

/// Runs a program that must succeed; what it printed.
fn run(program: &str, args: &[&str]) -> String {
    let output = output_within(PATIENCE, Command::new(program).args(args));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
