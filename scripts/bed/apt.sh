# SPDX-License-Identifier: Apache-2.0
#
# Functions that fetch Debian packages for the test bed. Sourced, not run.
#
# apt resolves, fetches and verifies packages with an empty package database of its own. They are unpacked
# and not installed: no maintainer script runs, so neither root nor chroot is needed.
#
# The archive is that of this machine's apt, or Debian's own on another distribution.
# USBVFIOD_DEBIAN_MIRROR names another one.

STABLE=trixie
NEWEST=trixie-backports
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

mirror() {
    if [[ -n ${USBVFIOD_DEBIAN_MIRROR:-} ]]; then
        printf '%s\n' "$USBVFIOD_DEBIAN_MIRROR"
        return
    fi
    local found
    found=$(env -u APT_CONFIG apt-get indextargets --format '$(REPO_URI)' \
        'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1)
    printf '%s\n' "${found:-http://deb.debian.org/debian}"
}

configure_apt() {
    local apt=$BED/apt uri
    [[ -e $KEYRING ]] || die "$KEYRING is missing" "install debian-archive-keyring (scripts/setup does)"
    uri=$(mirror)
    mkdir -p "$apt"/{state/lists,cache/archives,etc/{parts,preferences.d},kernels}/partial
    : >"$apt/status"
    printf "deb [signed-by=$KEYRING] $uri %s main\n" "$STABLE" "$NEWEST" >"$apt/sources.list"
    cat >"$apt/apt.conf" <<CONF
Dir "$apt"; Dir::State "state"; Dir::State::status "$apt/status"; Dir::Cache "cache";
Dir::Etc "etc"; Dir::Etc::main "-"; Dir::Etc::parts "$apt/etc/parts";
Dir::Etc::sourcelist "$apt/sources.list"; Dir::Etc::sourceparts "-";
APT::Architecture "amd64"; APT::Architectures { "amd64"; };
APT::Install-Recommends "false"; APT::Sandbox::User "root";
Acquire::Languages "none"; Acquire::Retries "3"; Debug::NoLocking "true";
CONF
    export APT_CONFIG=$apt/apt.conf
}

# with_progress MESSAGE FOLDER COMMAND…: runs a command and prints the size of the folder every 3 s.
with_progress() {
    local what=$1 folder=$2 watcher status=0
    shift 2
    say "$what"
    # A background job gets no SIGINT from the terminal, so it checks whether this script still runs.
    (while sleep 3 && kill -0 $$ 2>/dev/null; do
        say "  … $(du -sm "$folder" 2>/dev/null | cut -f1) MB so far"
    done) &
    watcher=$!
    "$@" >"$BED/log" 2>&1 || status=$?
    kill "$watcher" 2>/dev/null
    wait "$watcher" 2>/dev/null || true
    if ((status)); then
        cat "$BED/log" >&2
        die "that failed; its output is above" "check the network and run this again: it continues where it stopped"
    fi
}

read_package_lists() { with_progress "reading the package lists" "$BED/apt/state" apt-get update; }
