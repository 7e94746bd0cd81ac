#!/bin/sh
# Installs the agent: a virtual environment, a configuration, a systemd unit. Run it again to upgrade; a configuration is kept.
# To prepare an image, run it inside the image's root (chroot, systemd-nspawn): paths of an environment cannot be moved later.
#
#   sh install.sh [--python PYTHON] [--extra agent-litert] [--find-links DIR] [PACKAGE]
#
#   --python PYTHON    3.11 or later, with venv (default: python3; Debian: apt-get install python3-venv)
#   --extra NAME       which runtime: agent-litert (default), agent-ort, agent-tflite-runtime
#   --find-links DIR   wheels from there only, for boards without a network
#   PACKAGE            a wheel or a source folder of edgewright (default: edgewright, from the package index)
set -eu
python=python3 extra=agent-litert links='' package=edgewright
while [ $# -gt 0 ]; do
  case $1 in
    --python) python=$2; shift 2 ;;
    --extra) extra=$2; shift 2 ;;
    --find-links) links=$2; shift 2 ;;
    -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "install.sh: unknown option $1" >&2; exit 2 ;;
    *) package=$1; shift ;;
  esac
done
home=/opt/edgewright config=/etc/edgewright/agent.toml data=/var/lib/edgewright user=edgewright
here=$(cd "$(dirname "$0")" && pwd)

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "install.sh: $python is older than 3.11" >&2; exit 1; }
[ -x $home/bin/python ] || "$python" -m venv $home
set -- "$package[$extra]"
[ -z "$links" ] || set -- --no-index --find-links "$links" "$@"
$home/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "$@"

# The agent runs as nobody else; commands that root gives become this user before they touch its data.
id $user > /dev/null 2>&1 || useradd --system --home-dir $data --no-create-home --shell /usr/sbin/nologin $user
mkdir -p $data /etc/edgewright /etc/systemd/system
chown $user: $data
chmod 750 $data
[ -e $config ] || install -m 644 "$here/agent.toml" $config
install -m 644 "$here/edgewright-agent.service" /etc/systemd/system/edgewright-agent.service

if command -v systemctl > /dev/null && [ -d /run/systemd/system ]; then
  systemctl daemon-reload
fi
cat << END
Installed. Next: edit $config, then
  $home/bin/edgewright-agent install LOCATION --root 1.root.json --config $config
  systemctl enable --now edgewright-agent
END
