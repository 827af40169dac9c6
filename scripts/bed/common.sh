# SPDX-License-Identifier: Apache-2.0
#
# Paths and functions that the scripts of the test bed share. Sourced, not run.
#
# All clones on a machine share a cache folder of beds. A bed is named by the hash of its inputs, so clones
# of different versions do not interfere.
#
#   $BEDS/HASH           a bed; $BED in the scripts that make it
#     lock               locked shared by users of the bed, exclusively by its makers
#     tree               a Debian userland as plain files: the root of every guest, with a QEMU
#     tree/boot          a folder per kernel: vmlinuz, initrd, version
#     $TESTUSB            runs a case of the kernel's usbtest module; only tests need it
#     qemu               starts the QEMU that tests use
#     accel              the accelerator that has booted a guest on this machine: kvm or tcg
#     stamps             a file per finished step, with the hash of its inputs
#     apt                package lists and packages, while they are needed

BEDS=${USBVFIOD_BED:-${XDG_CACHE_HOME:-$HOME/.cache}/usbvfiod/bed}
TESTUSB=tree/usr/lib/bed/testusb
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { printf 'bed: %s\n' "$*" >&2; }

# die MESSAGE [ADVICE]
die() {
    say "$1"
    if (($# > 1)); then say "  $2"; fi
    exit 1
}

# Runs a program of the tree on this machine with the tree's loader and libraries, without root or chroot.
in_tree() {
    local tree=$1 program=$2
    shift 2
    "$tree/lib64/ld-linux-x86-64.so.2" --argv0 "${program##*/}" \
        --library-path "$tree/usr/lib/x86_64-linux-gnu" "$tree/$program" "$@"
}

# The hash of the contents of some files.
digest() { cat "$@" | sha256sum | cut -c1-16; }

done_before() { [[ -e $BED/stamps/$1 && $(<"$BED/stamps/$1") == "$2" ]]; }

mark_done() {
    mkdir -p "$BED/stamps"
    printf '%s\n' "$2" >"$BED/stamps/$1.new"
    mv "$BED/stamps/$1.new" "$BED/stamps/$1"
}
