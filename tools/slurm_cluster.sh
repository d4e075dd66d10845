#!/usr/bin/env bash
# A real Slurm cluster of several nodes on this one machine, for tests.
#
#   tools/slurm_cluster.sh install          install what is missing with apt-get, with a time limit
#   tools/slurm_cluster.sh up DIR           the same, then start, and wait until every node is idle
#   tools/slurm_cluster.sh down DIR         cancel the jobs, stop the daemons that `up DIR` started
#   tools/slurm_cluster.sh status DIR       show daemons, nodes and jobs; fail unless all of it runs
#   tools/slurm_cluster.sh crash DIR NODE   kill -9 the node and its jobs; `up` brings it back
#   tools/slurm_cluster.sh lose DIR NODE    kill -9 only its slurmd: its jobs run on, and Slurm
#                                           takes the node for dead
# Slurm is told of both at once: it would notice by itself only after SlurmdTimeout.
#
# `source DIR/env.sh` points sbatch, sacct, submitit... at the cluster.
# Needs root on Debian or Ubuntu, but neither systemd nor cgroups. DIR holds keys, state and logs.
set -euo pipefail

NODES=${NODES:-2}                 # node1, node2, ...
NODE_CPUS=${NODE_CPUS:-4}         # declared: may be more than the machine has
NODE_MEM_MB=${NODE_MEM_MB:-4000}  # declared, not enforced
NODE_GPUS=${NODE_GPUS:-2}         # at least 1, fake: each is a link to /dev/null
GRACE_S=${GRACE_S:-300}           # from a preemption's signal to its kill
BASE_PORT=${BASE_PORT:-16800}     # this port, the next, and one per node from BASE_PORT + 11

usage() { sed -n '2,/^set /{s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
die() { echo "slurm_cluster: $*" >&2; exit 1; }

[[ $# -ge 2 || ${1:-} = install ]] || usage
command=$1 dir=$(realpath -m "${2:-none}") node=${3:-}
run=$dir/run log=$dir/log etc=$dir/etc host=$(hostname -s)
[[ $command = up ]] || NODES=$(cat "$dir/nodes" 2>/dev/null || echo "$NODES")
nodes=()
for ((i = 1; i <= NODES; i++)); do nodes+=("node$i"); done
daemons=(munged mariadbd slurmdbd slurmctld "${nodes[@]}")

export SLURM_CONF=$etc/slurm.conf
export MYSQL_UNIX_PORT=$run/mysql.sock
# Marks our daemons, so that a stale pid file cannot hit another process.
export SLURM_CLUSTER_DIR=$dir

has_env() { grep -qzxF "$2" "/proc/$1/environ" 2>/dev/null; }
ours() { has_env "$1" "SLURM_CLUSTER_DIR=$dir"; }
gone() { ! ours "$1"; }
pid_of() { cat "$run/$1.pid" 2>/dev/null; }
alive() { local pid; pid=$(pid_of "$1") && ours "$pid"; }
any_alive() { local name; for name in "${daemons[@]}"; do alive "$name" && return; done; return 1; }

# wait_for SECONDS COMMAND...: run the command until it succeeds.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}

# start NAME COMMAND...: a daemon in the background, unless it runs already.
start() {
    local name=$1
    shift
    alive "$name" && return
    setsid "$@" </dev/null >>"$log/$name.out" 2>&1 9>&- &
    echo $! >"$run/$name.pid"
    wait_for 5 alive "$name" || die "$name did not start: see $log/$name.out"
}

stop() {
    local pid
    alive "$1" || return 0
    pid=$(pid_of "$1")
    kill "$pid"
    wait_for 10 gone "$pid" || kill -9 "$pid"
}

# All processes of a node: its slurmd, and the steps and tasks of its jobs.
kill_node() {
    local proc pid
    for proc in /proc/[0-9]*; do
        pid=${proc#/proc/}
        if has_env "$pid" "SLURM_CONF=$SLURM_CONF" && has_env "$pid" "SLURMD_NODENAME=$1"; then
            kill -9 "$pid" 2>/dev/null || true
        fi
    done
}

# apt SECONDS ARGUMENTS...: apt-get that does not ask, and does not wait for ever for a network or
# for another apt-get.
apt() {
    local seconds=$1
    shift
    DEBIAN_FRONTEND=noninteractive timeout --kill-after=10 "$seconds" \
        apt-get -q -o Acquire::Retries=1 -o Acquire::http::Timeout=20 \
        -o DPkg::Lock::Timeout=30 "$@" >&2
}

install() {
    local program policy=/usr/sbin/policy-rc.d
    for program in munged mariadbd mariadb slurmdbd slurmctld slurmd sbatch; do
        command -v $program >/dev/null && continue
        command -v apt-get >/dev/null ||
            die "$program is not installed, and there is no apt-get to install it"
        [[ $EUID = 0 ]] || die "$program is not installed, and only root can install it"
        if [[ ! -e $policy ]]; then  # the packages must not start daemons of their own
            trap 'rm -f /usr/sbin/policy-rc.d' EXIT
            printf '#!/bin/sh\nexit 101\n' >$policy
            chmod +x $policy
        fi
        apt 120 update || die "$program is not installed, and apt-get update fails (no network?)"
        apt 400 install -y --no-install-recommends munge mariadb-server-core mariadb-client-core \
            slurmdbd slurmctld slurmd slurm-client || die "apt-get could not install Slurm"
        return
    done
}

slurm_conf() {
    cat <<END
ClusterName=onemachine
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$BASE_PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits to start again: 120 s if not set.
AuthInfo=socket=$run/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$run/slurmctld.own
SlurmdPidFile=$run/%n.own
SlurmctldLogFile=$log/slurmctld.log
SlurmdLogFile=$log/%n.log
MailProg=/bin/true
FirstJobId=$(<"$dir/first_job")

# No cgroups: a container may not have them.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none

SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides

# A job in "high" preempts jobs in "low": they get their --signal, and are requeued.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1

# Be quick, for tests.
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=1
ReturnToService=2
# Be patient where only a busy machine takes long: a slow node is not a dead one.
KillWait=300
SlurmdTimeout=600
MessageTimeout=60

# submitit reads the state of jobs from sacct.
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((BASE_PORT + 1))
AccountingStoragePass=$run/munge.socket

GresTypes=gpu
NodeName=node[1-$NODES] NodeHostname=$host NodeAddr=127.0.0.1 \
Port=[$((BASE_PORT + 11))-$((BASE_PORT + 10 + NODES))] \
CPUs=$NODE_CPUS RealMemory=$NODE_MEM_MB Gres=gpu:$NODE_GPUS
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 DefMemPerCPU=100 GraceTime=$GRACE_S
PartitionName=high Nodes=ALL PriorityTier=10 DefMemPerCPU=100 PreemptMode=OFF
END
}

slurmdbd_conf() {
    cat <<END
AuthType=auth/munge
AuthInfo=socket=$run/munge.socket
DbdHost=localhost
DbdPort=$((BASE_PORT + 1))
SlurmUser=root
LogFile=$log/slurmdbd.log
PidFile=$run/slurmdbd.own
StorageType=accounting_storage/mysql
StorageUser=root
StorageLoc=slurm
END
}

configure() {
    local name i
    mkdir -p "$run" "$log" "$etc" "$dir"/{state,dev,db,munge}
    chmod 700 "$dir"/{state,db,munge}
    # Each cluster has its own job ids: submitit would take an old <job id>_0_result.pkl for a new
    # job's result.
    [[ -s $dir/first_job ]] || echo $(($(date +%s) % 60000000)) >"$dir/first_job"
    if any_alive && ! slurm_conf | cmp -s - "$SLURM_CONF"; then
        die "it runs with other options: first run 'down $dir'"
    fi
    echo "$NODES" >"$dir/nodes"
    slurm_conf >"$SLURM_CONF"
    echo "NodeName=node[1-$NODES] Name=gpu File=$dir/dev/gpu[0-$((NODE_GPUS - 1))]" \
        >"$etc/gres.conf"
    (umask 077 && slurmdbd_conf >"$etc/slurmdbd.conf")
    [[ -s $dir/munge/key ]] || (umask 077 && head -c 128 /dev/urandom >"$dir/munge/key")
    for ((i = 0; i < NODE_GPUS; i++)); do ln -sfn /dev/null "$dir/dev/gpu$i"; done
    for name in "${nodes[@]}"; do
        mkdir -p "$dir/spool/$name"
        # MASTER_ADDR is a node's name, so it must resolve.
        grep -qw "$name" /etc/hosts || echo "127.0.0.1 $name" >>/etc/hosts
    done
    # A job that drops SLURM_* from its environment (submitit's clean_env) finds the cluster here.
    [[ -e /etc/slurm/slurm.conf ]] || ln -sfn "$SLURM_CONF" /etc/slurm/slurm.conf
    echo "export SLURM_CONF=$SLURM_CONF" >"$dir/env.sh"
}

database() {
    mariadb --no-defaults --socket="$MYSQL_UNIX_PORT" -e 'create database if not exists slurm'
}
no_jobs() { [[ ! $(squeue -h -o %A) ]]; }
nodes_up() { [[ $(sinfo -h -N -p low -t idle,mix,alloc,comp -o %N | wc -l) = "$NODES" ]]; }

# cores_of I: the cores of node I, as taskset lists them. Nodes share cores if there are too few.
cores_of() {
    local all
    all=$(nproc)
    seq -s, $((($1 - 1) % all)) "$NODES" $((all - 1))
}

up() {
    local name cores
    [[ $EUID = 0 ]] || die "needs root"
    install
    mkdir -p "$dir"
    exec 9>"$dir/lock"
    flock 9
    configure
    start munged munged --foreground --force --key-file="$dir/munge/key" \
        --seed-file="$dir/munge/seed" \
        --socket="$run/munge.socket" --pid-file="$run/munged.own" --log-file="$log/munged.log"
    # slurmdbd needs no grant tables, so an empty data folder will do: no mariadb-install-db.
    start mariadbd mariadbd --no-defaults --user=root --datadir="$dir/db" \
        --socket="$MYSQL_UNIX_PORT" --pid-file="$run/mariadbd.own" \
        --skip-networking --skip-grant-tables --performance-schema=OFF \
        --innodb-buffer-pool-size=32M --innodb-log-file-size=8M --innodb-flush-log-at-trx-commit=0
    wait_for 30 database || die "no database: see $log/mariadbd.out"
    start slurmdbd slurmdbd -D
    wait_for 30 sacctmgr -n show cluster || die "no accounting: see $log/slurmdbd.out"
    [[ $(sacctmgr -n show cluster onemachine) ]] || sacctmgr -iQ add cluster onemachine >/dev/null
    start slurmctld slurmctld -D
    for name in "${nodes[@]}"; do
        # Each node its own host name, where the kernel lets us.
        export SLURMD_NODENAME=$name
        # ... and its own share of the cores: threads of many jobs on the same cores mostly wait for
        # each other.
        cores=$(cores_of "${name#node}")
        if unshare --uts true 2>/dev/null; then
            start "$name" unshare --uts \
                sh -c "hostname $name && exec taskset -c $cores slurmd -D -N $name"
        else
            start "$name" taskset -c "$cores" slurmd -D -N "$name"
        fi
    done
    wait_for 60 nodes_up || { status || true; die "nodes are not up: see $log"; }
    sinfo
}

down() {
    local name i
    if alive slurmctld; then
        squeue -h -o %A | sort -u | xargs -r scancel || true
        wait_for 15 no_jobs || true
    fi
    for ((i = ${#daemons[@]} - 1; i >= 0; i--)); do stop "${daemons[i]}"; done
    for name in "${nodes[@]}"; do kill_node "$name"; done
    [[ $(readlink /etc/slurm/slurm.conf) != "$SLURM_CONF" ]] || rm /etc/slurm/slurm.conf
}

# The node is dead for Slurm: its jobs get NODE_FAIL, and are requeued.
set_down() { scontrol update NodeName="$1" State=DOWN Reason="$command"; }

status() {
    local name ok=0
    for name in "${daemons[@]}"; do
        if alive "$name"; then
            echo "$name: pid $(pid_of "$name")"
        else
            echo "$name: down"
            ok=1
        fi
    done
    [[ $ok = 0 ]] && sinfo -N && squeue && nodes_up
}

case $command in
    install | up | down | status) "$command" ;;
    crash) [[ " ${nodes[*]} " == *" $node "* ]] || usage; kill_node "$node"; set_down "$node" ;;
    lose) alive "$node" && kill -9 "$(pid_of "$node")" && set_down "$node" ;;
    *) usage ;;
esac
