//! Which file systems are mounted: `/proc/PID/mountinfo`.

use std::{collections::BTreeMap, ffi::OsString, os::unix::ffi::OsStringExt as _, path::PathBuf};

use rustix::fs::makedev;

/// Kept on this machine, and able to hold files that can be run. What comes over a network or from another program is
/// not here: asking it could take for ever. Nor is devtmpfs, nor a tmpfs on a directory called `dev`: looking at a file
/// means opening it, and opening a device may set something off.
const LOCAL: [&str; 18] = [
    "bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "msdos", "nilfs2", "ntfs3",
    "overlay", "ramfs", "reiserfs", "tmpfs", "vfat", "xfs", "zfs",
];

/// Those that do not keep who may run a file, and say that everybody may.
const WITHOUT_MODES: [&str; 4] = ["exfat", "msdos", "ntfs3", "vfat"];

/// A file system that is mounted somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// As in [`rustix::fs::Stat::st_dev`], except where a file system has several.
    pub(super) device: u64,
    /// One of the places where it is mounted.
    pub(super) path: PathBuf,
    /// Whether its files say themselves who may run them.
    pub(super) has_modes: bool,
}

/// The local file systems, each once. Lines that are not understood are left out.
pub(super) fn local(mountinfo: &[u8]) -> Vec<Mount> {
    // What was mounted later at the same place hides what was there.
    let mut visible: BTreeMap<PathBuf, Option<Mount>> = BTreeMap::new();
    for line in mountinfo.split(|byte| *byte == b'\n') {
        if let Some((path, mount)) = parse(line) {
            visible.insert(path, mount);
        }
    }
    let mut mounts: BTreeMap<u64, Mount> = BTreeMap::new();
    for mount in visible.into_values().flatten() {
        mounts.entry(mount.device).or_insert(mount);
    }
    mounts.into_values().collect()
}

/// `36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/root rw`: where it is mounted, and what, if local.
fn parse(line: &[u8]) -> Option<(PathBuf, Option<Mount>)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let device = makedev(major.parse().ok()?, minor.parse().ok()?);
    let path = unescaped(fields.nth(1)?);
    fields.find(|field| *field == b"-")?;
    let kind = str::from_utf8(fields.next()?).ok()?;
    let is_local = LOCAL.contains(&kind) && !(kind == "tmpfs" && path.ends_with("dev"));
    let mount = Mount { device, path: path.clone(), has_modes: !WITHOUT_MODES.contains(&kind) };
    Some((path, is_local.then_some(mount)))
}

/// Blanks and the like are written as `\040`.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                Some(((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), tail))
            }
            _ => None,
        };
        let (byte, after) = octal.unwrap_or((*first, tail));
        bytes.push(byte);
        rest = after;
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_file_systems_are_found_once_each() {
        let text = b"\
1 0 254:0 / / rw,relatime - ext4 /dev/vda rw
2 1 0:5 / /dev rw shared:2 - devtmpfs devtmpfs rw
3 1 0:20 / /proc rw shared:3 master:4 - proc proc rw
4 1 0:30 / /mnt/a\\040b\\134c rw - tmpfs tmpfs rw
5 1 254:0 /home /home rw - ext4 /dev/vda rw
6 1 0:31 / /srv rw - nfs4 server:/ rw
7 1 0:32 / /var/lib/x/merged rw - overlay overlay rw,lowerdir=/a - b
8 1 8:17 / /media/stick rw - vfat /dev/sdb1 rw
9 1 0:33 / /hidden rw - tmpfs tmpfs rw
10 9 0:34 / /hidden rw - fuse.sshfs x rw
11 1 0:35 / /chroot/dev rw - tmpfs tmpfs rw
nonsense
12 1 8:x / /bad rw - ext4 /dev/sdc rw
13 1 8:33 / /cut rw
";
        let found: Vec<_> =
            local(text).into_iter().map(|mount| (mount.device, mount.path, mount.has_modes)).collect();
        let expected = [
            (makedev(0, 30), PathBuf::from("/mnt/a b\\c"), true),
            (makedev(0, 32), PathBuf::from("/var/lib/x/merged"), true),
            (makedev(8, 17), PathBuf::from("/media/stick"), false),
            (makedev(254, 0), PathBuf::from("/"), true),
        ];
        assert_eq!(found, expected);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read(text in "([0-9]{1,3} 1 [0-9]{1,12}:[0-9]{1,12} / /[\\\\0-9a-z]{0,8} rw - (ext4|tmpfs)\n|[ -~\n]{0,20}){0,5}") {
            let mounts = local(text.as_bytes());
            proptest::prop_assert!(mounts.len() <= text.lines().count());
        }
    }

    #[test]
    fn this_system_has_a_local_file_system() {
        let text = std::fs::read("/proc/self/mountinfo").unwrap();
        assert!(!local(&text).is_empty());
    }
}
