# SPDX-License-Identifier: Apache-2.0
#
# What the scripts of the test bed share: where things are, how they speak. Sourced, not run.
#
# Beds live in one cache folder that all clones on a machine share, each under the hash of what it
# was made from: clones of different versions do not disturb each other.
#
#   $BEDS/HASH           one bed, which is $BED to the scripts that make it
#     lock               held shared by whoever uses the bed, exclusively by whoever changes it
#     tree               a Debian userland as plain files: root of every guest, and home of a QEMU
#     tree/boot          one folder a kernel: vmlinuz, initrd, version
#     $TESTUSB            caller of the kernel's usbtest module, for tests alone
#     qemu               starts the QEMU to use, wherever it is
#     accel              the accelerator that was seen to boot a guest here: kvm or tcg
#     stamps             one file a finished step, holding the hash of what it was made from
#     apt                package lists and packages, while they are needed

BEDS=${USBVFIOD_BED:-${XDG_CACHE_HOME:-$HOME/.cache}/usbvfiod/bed}
TESTUSB=tree/usr/lib/bed/testusb
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { printf 'bed: %s\n' "$*" >&2; }

# die MESSAGE [WHAT TO DO]
die() {
    say "$1"
    if (($# > 1)); then say "  $2"; fi
    exit 1
}

# Runs a program of the tree on this machine, with the tree's own loader and libraries, so that
# neither root nor chroot is needed, nor the program on the host.
in_tree() {
    local tree=$1 program=$2
    shift 2
    "$tree/lib64/ld-linux-x86-64.so.2" --argv0 "${program##*/}" \
        --library-path "$tree/usr/lib/x86_64-linux-gnu" "$tree/$program" "$@"
}

# Hash of the given files' contents.
digest() { cat "$@" | sha256sum | cut -c1-16; }

done_before() { [[ -e $BED/stamps/$1 && $(<"$BED/stamps/$1") == "$2" ]]; }

mark_done() {
    mkdir -p "$BED/stamps"
    printf '%s\n' "$2" >"$BED/stamps/$1.new"
    mv "$BED/stamps/$1.new" "$BED/stamps/$1"
}
