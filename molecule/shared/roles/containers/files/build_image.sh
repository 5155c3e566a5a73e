#!/usr/bin/env bash
# Makes the container image of one Debian release with mmdebstrap and `podman import`, so that no
# container registry is needed. Says "kept" when the image at hand was made from the same recipe.
#
# Usage: build_image.sh RELEASE IMAGE        (as root; RELEASE is a Debian codename)
set -euo pipefail

release=$1
image=$2
# Two scenarios may begin at the same time, and both need it.
exec 9>"${TMPDIR:-/var/tmp}/vllm-nginx-lb-image.lock"
flock 9
label=vllm-nginx-lb-test.recipe
# What makes a plain Debian a host that Ansible can manage (python3-apt: apt in check mode), with
# systemd as PID 1.
packages=systemd,systemd-sysv,dbus,iproute2,ca-certificates,python3,python3-apt,openssh-server
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# The mirror this machine's own apt uses for Debian packages with the given label, if it uses one.
host_mirror() {
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' "Label: $1" |
        sed -n '/^https\?:/{s,/*$,,p;q}'
}

mirror=$(host_mirror Debian)
mirror=${mirror:-http://deb.debian.org/debian}
security=$(host_mirror Debian-Security)

# apt in the containers goes the way apt goes here: the same proxy, the same extra authorities. A mirror may stand still,
# and what it has of testing then counts as too old after a week; signatures are checked all the same.
mapfile -t apt_settings < <(
    apt-config dump | grep -E '^Acquire::https?::Proxy' || true
    printf 'Acquire::%s;\n' 'Languages "none"' 'Retries "3"' 'Check-Valid-Until "false"'
)
sources=("deb $mirror $release main" "deb $mirror $release-updates main")
if [[ $security ]]; then sources+=("deb $security $release-security main"); fi
shopt -s nullglob
authorities=(/usr/local/share/ca-certificates/*.crt)

recipe=$(
    {
        printf '%s\n' "${sources[@]}" "${apt_settings[@]}"
        cat "${BASH_SOURCE[0]}" "${authorities[@]}"
    } | sha256sum | cut -d ' ' -f 1
)
if [[ $(podman image inspect --format "{{ index .Labels \"$label\" }}" "$image" 2>/dev/null) == "$recipe" ]]; then
    echo kept
    exit
fi

if [[ ! -e $keyring ]]; then
    echo "$keyring is missing: install the package debian-archive-keyring" >&2
    exit 1
fi

# mmdebstrap's own settings stay in the image: how apt fetches, and that dpkg need not wait for the disk. The package
# lists stay, too. By the marker probe_host.py knows that it is in a container; every container gets a machine id of
# its own at first boot; RTMIN+3 asks systemd to power off.
options=(--mode=root --variant=minbase --include="$packages" --keyring="$keyring" --skip=cleanup/apt/lists
    --dpkgopt=force-unsafe-io "${apt_settings[@]/#/--aptopt=}")
if ((${#authorities[@]})); then
    options+=(--customize-hook="copy-in ${authorities[*]} /usr/local/share/ca-certificates"
        --customize-hook='chroot "$1" update-ca-certificates')
fi
# In a file first: podman would import what it gets of an image whose making fails halfway.
archive=$(mktemp --suffix=.tar "${TMPDIR:-/var/tmp}/vllm-nginx-lb-image.XXXXXX")
trap 'rm -f "$archive"' EXIT
mmdebstrap "${options[@]}" \
    --customize-hook='touch "$1/etc/vllm-nginx-lb-test"; : >"$1/etc/machine-id"; rm -f "$1/etc/hostname"' \
    "$release" "$archive" "${sources[@]}"
podman import --quiet --change "LABEL $label=$recipe" --change 'STOPSIGNAL SIGRTMIN+3' --change 'CMD ["/sbin/init"]' \
    "$archive" "$image"
# The one it replaces, unless a container still uses it.
podman image prune --force --filter "label=$label"
echo built
