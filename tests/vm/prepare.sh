#!/usr/bin/env bash
# Prepares what the tests in a virtual machine boot: prepare.sh FOLDER
#
# Afterwards FOLDER/vmlinuz and FOLDER/initramfs are there, and the commands that the tests start. The
# kernel is the one that Debian's linux-image-amd64 stands for; its package and a static busybox are
# fetched into FOLDER and unpacked there: neither is installed. Once they are there the network is not
# asked again; remove FOLDER to have a newer kernel.
set -euo pipefail
shopt -s inherit_errexit
here=$(cd "$(dirname "$0")" && pwd)
[ $# = 1 ] || { echo "usage: prepare.sh FOLDER" >&2; exit 2; }
mkdir -p "$1"
cd "$1"
PATH=$PATH:/usr/sbin:/sbin

# In the order in which they are loaded, each with what it depends on.
modules=(virtio_pci virtio_console 9pnet_virtio 9p overlay virtio_net nvme vfio-pci vfio_iommu_type1)

"$here/../scripts/need.sh" qemu-system-x86_64:qemu-system-x86 nbdkit:nbdkit modprobe:kmod
if ! command -v apt-get >/dev/null; then
    echo "missing: a Debian kernel for the guest. Run this on Debian (or in a container of it)." >&2
    exit 1
fi

# What runs as root may bring the package lists up to date; they may be missing or too old.
update_lists() {
    local as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo -n)
    "${as_root[@]}" apt-get -q -y -o Acquire::Retries=3 update >/dev/null 2>&1 ||
        echo "apt-get update failed: the package lists stay as they are" >&2
}

kernel_package() {
    apt-cache depends --important linux-image-amd64 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*-amd64\)$/\1/p' | head -n 1
}

# fetch PACKAGE: its .deb lies in the folder packages/ then.
fetch() {
    mkdir -p packages
    echo "fetching $1" >&2
    (cd packages && apt-get -q -o Acquire::Retries=3 -o APT::Sandbox::User=root download "$1") \
        >fetch.log 2>&1
}

# unpack PACKAGE FOLDER: whole or not at all.
unpack() {
    local deb
    deb=$(find packages -name "$1_*.deb" | sort | tail -n 1)
    rm -rf "$2" "$2.new"
    dpkg-deb -x "$deb" "$2.new"
    mv "$2.new" "$2"
}

fetch_all() {
    package=$(kernel_package)
    [ -n "$package" ] && fetch "$package" && fetch busybox-static
}

if [ ! -d busybox ] || [ ! -s kernel-package ]; then
    if ! fetch_all; then
        update_lists
        if ! fetch_all; then
            echo "cannot fetch linux-image-amd64's kernel and busybox-static; apt said:" >&2
            cat fetch.log >&2 || true
            echo "Run \`apt-get update\` as root, then try again." >&2
            exit 1
        fi
    fi
    unpack "$package" kernel
    # Where /lib is a part of /usr, newer packages say so.
    [ -d kernel/lib ] || ln -s usr/lib kernel/lib
    depmod -b kernel "${package#linux-image-}"
    unpack busybox-static busybox
    echo "$package" >kernel-package
    rm -rf packages initramfs
fi
version=$(sed 's/^linux-image-//' kernel-package)
[ -e vmlinuz ] && [ vmlinuz -ef "kernel/boot/vmlinuz-$version" ] ||
    ln -sf "kernel/boot/vmlinuz-$version" vmlinuz

if [ initramfs -nt "$here/init" ] && [ initramfs -nt "$0" ]; then
    exit 0
fi
rm -rf root
mkdir -p root/{bin,lib,proc,sys,dev,newroot}
cp busybox/bin/busybox root/bin/
cp "$here/init" root/init
chmod 755 root/init
for module in "${modules[@]}"; do
    modprobe -d "$PWD/kernel" -S "$version" --show-depends "$module"
done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' >modules
while read -r module; do
    cp "$module" root/lib/
    basename "$module"
done <modules >root/lib/order
(cd root && find . | ../busybox/bin/busybox cpio -o -H newc 2>/dev/null | gzip -1) >initramfs.new
mv initramfs.new initramfs
rm -rf root
