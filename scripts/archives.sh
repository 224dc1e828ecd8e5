# Packages and source packages of Debian's archives, apart from those that are
# installed.  They stay in the folder $ARCHIVES.  Sourced.

# apt_setup: configure apt for the suites that have what we need, apart from the
# machine's own configuration.  Its archives are those of the machine.
apt_setup() {
    local dir="$ARCHIVES/apt" main security suite
    main=$(archive_of Debian)
    security=$(archive_of Debian-Security)
    [ -n "$main" ] && [ -n "$security" ] ||
        die "apt has no lists of Debian's archives; run apt-get update"
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
    for suite in bookworm trixie forky; do
        say "deb $main $suite main"
    done >"$dir/sources.list"
    # OpenSSL and libevent come from stable, or else from oldstable.
    for suite in bookworm trixie; do
        say "deb-src $main $suite main"
        say "deb-src $security $suite-security main"
    done >>"$dir/sources.list"
    cat >"$dir/apt.conf" <<END
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$dir/lists";
Dir::Cache "$dir/cache";
Acquire::Languages "none";
APT::Architectures { "amd64"; "arm64"; };
APT::Sandbox::User "root";
END
    export APT_CONFIG="$dir/apt.conf"
    [ -f "$dir/updated" ] || quietly apt-get update
    touch "$dir/updated"
}

# archive_of LABEL: print the address of an archive that apt knows.
archive_of() {
    apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' "Label: $1" |
        sort -u | head -n 1
}

# fetch FOLDER NAME VERSIONS COMMAND...: download a package to that folder, unless
# one is there.  Take the newest version that the archive still has: its lists
# may be newer than its files.
fetch() {
    local dir=$1 name=$2 versions=$3 version
    shift 3
    [ ! -d "$dir" ] || return 0
    rm -rf "$dir.partial"
    mkdir -p "$dir.partial"
    for version in $versions; do
        if (cd "$dir.partial" && "$@" "$name=$version") \
            >"$dir.log" 2>&1; then
            say "  $name $version"
            mv "$dir.partial" "$dir"
            return
        fi
        say "  $name $version cannot be downloaded"
    done
    without_urls <"$dir.log" >&2
    die "cannot download $name"
}

# fetch_source NAME UPSTREAM-VERSION: download and unpack a source package with
# Debian's patches, as $ARCHIVES/source/NAME/tree.
fetch_source() {
    local dir="$ARCHIVES/source/$1" versions
    versions=$(apt-cache showsrc --only-source "$1" |
        sed -n "s/^Version: \($2.*\)/\1/p" | sort -u -V -r)
    fetch "$dir" "$1" "$versions" apt-get source -q --download-only
    [ -d "$dir/tree" ] ||
        quietly dpkg-source -x "$dir/$1"_*.dsc "$dir/tree"
}

# without_autotools SOURCE: keep make from running the Autotools because Debian has
# patched Makefile.am.
without_autotools() {
    touch "$1/aclocal.m4"
    touch "$1/configure" "$1/config.h.in" "$1/Makefile.in"
}

# fetch_package NAME ARCHITECTURE: download and unpack a binary package, as
# $ARCHIVES/packages/NAME-ARCHITECTURE/tree.
fetch_package() {
    local dir="$ARCHIVES/packages/$1-$2" versions
    versions=$(apt-cache madison "$1:$2" | awk '{ print $3 }' | sort -u -V -r)
    [ -n "$versions" ] || return 1
    fetch "$dir" "$1:$2" "$versions" apt-get download -q
    [ -d "$dir/tree" ] || dpkg-deb -x "$dir/$1"_*.deb "$dir/tree"
}
