#!/usr/bin/env bash
# The cluster itself, in namespaces of its own that up.sh makes: nothing outside of them changes, and when this
# process ends, all that runs in them ends with it. Arguments: folder, packages, nodes, ssh port, training python.
set -euo pipefail
nodes=$3 port=$4 train_python=$5
here=$(cd "$(dirname "$0")" && pwd)
user=skyjob cpus=32 memory_mib=128000
# The folder has a place of its own, as every node has its own /tmp.
mkdir -p "$1/packages" && mount --bind "$1" /mnt && mount --bind "$2" /mnt/packages
folder=/mnt packages=/mnt/packages  # wheels/, cache/ and uv
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# Folders of the machine that this one has for itself; a node has /tmp for itself too.
over() { mkdir -p "$folder/root$1" "$1"; mount --bind "$folder/root$1" "$1"; }
for place in /home /srv /run /etc/slurm /etc/munge /var/log /var/lib/munge; do over "$place"; done
mkdir -p /run/sshd /run/munge /srv/shared "/home/$user" "$folder/state" "$folder/bin" "$folder/log"

# A user of jobs. It has the number 0, so that it may read the interpreters wherever they lie.
for file in passwd group shadow; do cp "/etc/$file" "$folder/$file"; done
sed -i "1i $user:x:0:0::/home/$user:/bin/bash" "$folder/passwd"
sed -i "1i $user:*:19000:0:99999:7:::" "$folder/shadow"
for file in passwd group shadow; do mount --bind "$folder/$file" "/etc/$file"; done
# No "not interactive: return", so that ssh and rsync land in SkyPilot's cluster folder.
echo "export PATH=$PATH" >"/home/$user/.bashrc"

# Every name is loopback.
hostname login
{ echo "127.0.0.1 localhost login"; for i in $(seq "$nodes"); do echo "127.0.1.$i n$i"; done; } >"$folder/hosts"
mount --bind "$folder/hosts" /etc/hosts
# Slurm resolves names with AI_ADDRCONFIG, which glibc answers only where there is more than 127.0.0.1.
python3 - <<'PY'
import fcntl, socket, struct
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
    address = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton("127.0.1.1"))
    fcntl.ioctl(handle, 0x8916, struct.pack("16s16s8x", b"lo:1", address))  # SIOCSIFADDR
PY

# SkyPilot wants uv at $HOME/.local/bin, else it would fetch it; TaskProlog runs before the step that looks.
install -m 755 "$here/uv" "$folder/bin/uv"
cat >"$folder/bin/settings" <<EOC
real=$packages/uv wheels=$packages/wheels cache=$packages/cache train_python=$train_python folder=$folder
EOC
cat >"$folder/bin/task_prolog" <<EOC
#!/bin/bash
[ -f "/home/$user/.sky_provision/\$SLURM_JOB_NAME.sh" ] || exit 0
bin="/home/$user/.sky_clusters/\$SLURM_JOB_NAME/.local/bin"
[ -e "\$bin/uv" ] || { mkdir -p "\$bin" && ln -sf "$folder/bin/uv" "\$bin/uv"; }
EOC
chmod 755 "$folder/bin/task_prolog"

# munge: who says what to whom
dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 status=none
chown munge:munge /etc/munge/munge.key /run/munge /var/lib/munge
mkdir -p /var/log/munge; chown munge:munge /var/log/munge
chmod 400 /etc/munge/munge.key; chmod 755 /run/munge; chmod 700 /var/log/munge /var/lib/munge
setpriv --reuid munge --regid munge --clear-groups /usr/sbin/munged

for g in 0 1; do : >"$folder/gpu$g"; done  # the gpu plugin wants a file a GPU
{
  cat "$here/slurm.conf"
  cat <<EOC
SlurmctldHost=login(127.0.0.1)
SlurmctldPort=$((port + 1))
StateSaveLocation=$folder/state/ctld
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdSpoolDir=$folder/state/slurmd-%n
SlurmdLogFile=$folder/log/slurmd-%n.log
TaskProlog=$folder/bin/task_prolog
EOC
  for i in $(seq "$nodes"); do
    echo "NodeName=n$i NodeHostname=n$i NodeAddr=127.0.1.$i Port=$((port + 1 + i)) CPUs=$cpus Boards=1" \
      "SocketsPerBoard=1 CoresPerSocket=$cpus ThreadsPerCore=1 RealMemory=$memory_mib Gres=gpu:H100:2"
    echo "NodeName=n$i Name=gpu Type=H100 File=$folder/gpu[0-1]" >>/etc/slurm/gres.conf
  done
  echo "PartitionName=main Nodes=n[1-$nodes] Default=YES MaxTime=24:00:00 State=UP OverSubscribe=NO"
} >/etc/slurm/slurm.conf
printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nConstrainCores=no\n' >/etc/slurm/cgroup.conf

mkdir -p "$folder/state/ctld"
/usr/sbin/slurmctld -c
for i in $(seq "$nodes"); do
  # SkyPilot's executor asks for the address of its host's name, and keeps a node's runtime in /tmp.
  mkdir -p "$folder/state/slurmd-n$i" "$folder/tmp-n$i"; chmod 1777 "$folder/tmp-n$i"
  unshare --mount --uts --propagation private sh -c \
    "hostname n$i && mount --bind $folder/tmp-n$i /tmp && exec /usr/sbin/slurmd -N n$i"
done

cat >"$folder/sshd_config" <<EOC
Port $port
ListenAddress 127.0.0.1
HostKey $folder/host_key
PidFile $folder/sshd.pid
AuthorizedKeysFile $folder/key.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
MaxSessions 200
MaxStartups 150:30:200
AcceptEnv SKY_CLUSTER_NAME
Subsystem sftp internal-sftp
EOC
for key in key host_key; do ssh-keygen -q -t ed25519 -N '' -C skyslurm -f "$folder/$key"; done
/usr/sbin/sshd -f "$folder/sshd_config" -E "$folder/log/sshd.log"

for _ in $(seq 60); do
  [ "$(sinfo -h -N -o %T | grep -c '^idle$')" = "$nodes" ] && break
  sleep 0.5
done
[ "$(sinfo -h -N -o %T | grep -c '^idle$')" = "$nodes" ] || { cat "$folder"/log/*.log >&2; exit 1; }
sinfo -N -o '%N %P %T %c %m %G' >&2
echo "ready $port"
exec cat  # until whoever started this is gone
