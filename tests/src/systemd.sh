# systemd over a copy-on-write view of the root directory, which is gone with the mount namespace that this runs in.
# KIND is `first` in a process namespace of its own, where systemd is its first process, and else `beside`. DIRECTORY is empty.
kind=$1 directory=$2 agent=$3

mount -t tmpfs tmpfs "$directory"
mkdir "$directory/upper" "$directory/work" "$directory/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$directory/upper,workdir=$directory/work" "$directory/root"
root=$directory/root
mkdir -p "$root/usr/local/bin" "$root/etc/systemd/system" "$root/etc/systemd/user" "$root/mnt/outside"
install -o root -g root -m 755 "$agent" "$root/usr/local/bin/alibi-agent"
rm -rf "$root/etc/alibi" "$root/var/lib/alibi-agent" "$root/var/log/journal"

mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
    : > "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"

# Of all that this machine has installed, only the journal.
printf '[Unit]\nRequires=systemd-journald.service\nAfter=systemd-journald.service\n' > "$root/etc/systemd/system/lab.target"
printf '[Unit]\n' > "$root/etc/systemd/user/lab.target"
for unit in basic sysinit local-fs sockets timers paths slices; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit.target"
done

cd "$root"
pivot_root . mnt/outside
umount -l /mnt/outside
mount --make-rshared /
hostname lab
if [ "$kind" = first ]; then
    export container=lab
    exec /lib/systemd/systemd --unit=lab.target --show-status=no --log-target=null
fi
# What a service manager that is not the first process takes for granted.
mkdir -p /run/systemd/system /run/systemd/propagate /run/systemd/inaccessible/dir /run/user/0
: > /run/systemd/inaccessible/reg
chmod -R go= /run/systemd/inaccessible /run/user/0
export XDG_RUNTIME_DIR=/run/user/0 HOME=/
exec /lib/systemd/systemd --user --unit=lab.target --log-target=null
