#!/usr/bin/env bash
# Runs a single-node Apache Kafka (KRaft) without Docker. See --help.
set -euo pipefail

usage() {
  cat <<'HELP'
Runs a single-node Apache Kafka (KRaft: broker and controller in one) in the foreground.

  run.sh --data DIR --port PORT [--controller-port PORT]
  run.sh --fetch

  --data DIR              where the broker keeps its data; made if missing, survives restarts
  --port PORT             where clients connect, on 127.0.0.1; 0 = a free one (the last one, if still free)
  --controller-port PORT  the controller's own port; 0 = a free one (the default)
  --fetch                 only fetch the broker's jars (about 45 MB) with Maven

The address is in DIR/address (host:port). It is written before the broker starts, so wait until it answers.
SIGTERM stops the broker cleanly. Needs Java 17 or later, and Maven for the first run.

  JAVA_HOME        the Java to use, else the one on PATH
  KAFKA_HEAP_OPTS  memory for the broker (default: -Xmx512m -XX:+UseSerialGC)
  XDG_CACHE_HOME   the jars are kept in $XDG_CACHE_HOME/billing (default: ~/.cache/billing)
HELP
}

die() { echo "run.sh: $*" >&2; exit 1; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
data='' port='' controller_port=0 fetch_only=false
while (($#)); do
  case $1 in
    --data | --port | --controller-port)
      (($# > 1)) || die "$1 needs a value"
      case $1 in
        --data) data=$2 ;;
        --port) port=$2 ;;
        *) controller_port=$2 ;;
      esac
      shift 2
      ;;
    --fetch) fetch_only=true; shift ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; die "unknown argument: $1" ;;
  esac
done

# --- the jars ---------------------------------------------------------------

version=$(sed -n 's:.*<kafka.version>\(.*\)</kafka.version>.*:\1:p' "$here/pom.xml")
[[ -n $version ]] || die "no <kafka.version> in $here/pom.xml"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/billing/kafka-$version
# A changed pom.xml gets a directory of its own, so a running broker keeps its jars.
libs=$cache/libs-$(cksum <"$here/pom.xml" | cut -d' ' -f1)

# Concurrent runs wait for one another; the directory appears complete or not at all.
fetch() {
  [[ -d $libs ]] && return
  command -v mvn >/dev/null || die "Maven (mvn) is needed to fetch Kafka $version: install it, e.g. apt-get install maven"
  mkdir -p "$cache"
  (
    if command -v flock >/dev/null; then flock 9; fi
    [[ -d $libs ]] && exit 0
    echo "run.sh: fetching Apache Kafka $version into $cache" >&2
    temp=$(mktemp -d "$cache/fetch.XXXXXX")
    trap 'rm -rf "$temp"' EXIT
    mvn --batch-mode --quiet --file "$here/pom.xml" dependency:copy-dependencies \
      -DincludeScope=runtime -DoutputDirectory="$temp/libs" >&2
    [[ -d $libs ]] || mv "$temp/libs" "$libs"
  ) 9>"$cache/lock"
}

fetch
if $fetch_only; then exit 0; fi

# --- the broker -------------------------------------------------------------

[[ -n $data && -n $port ]] || { usage >&2; die "--data and --port are required"; }
[[ $port =~ ^[0-9]+$ && $controller_port =~ ^[0-9]+$ ]] || die "a port is a number"
java=${JAVA_HOME:+$JAVA_HOME/bin/}java
command -v "$java" >/dev/null || die "Java 17 or later is needed: install it, e.g. apt-get install default-jre-headless"

in_use() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Below the range that systems hand out for outgoing connections.
free_port() {
  local p
  for _ in {1..100}; do
    p=$((20000 + RANDOM % 10000))
    if ((p != ${1:-0})) && ! in_use "$p"; then echo "$p"; return; fi
  done
  die "no free port found"
}

mkdir -p "$data"
data=$(cd "$data" && pwd)
if ((port == 0)); then
  if [[ -s $data/address ]]; then port=$(sed 's/.*://' "$data/address"); fi
  if ((port == 0)) || in_use "$port"; then port=$(free_port); fi
fi
if ((controller_port == 0)); then controller_port=$(free_port "$port"); fi

cat >"$data/server.properties" <<PROPERTIES
# Written by run.sh at every start.
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller_port
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller_port
advertised.listeners=PLAINTEXT://127.0.0.1:$port
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=$data/data

# Topics are created on purpose, never by a misspelt name.
auto.create.topics.enable=false

# One node holds the only copy of everything.
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1

# Quick to start and to rebalance.
num.partitions=1
offsets.topic.num.partitions=8
transaction.state.log.num.partitions=8
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000

# After a kill -9 the new broker waits until its former self is forgotten.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=1000
PROPERTIES

java_opts=(-Djava.awt.headless=true -Djava.net.preferIPv4Stack=true
  "-Dlog4j2.configurationFile=$here/log4j2.properties" -cp "$libs/*")

# Formatting writes meta.properties last, so an interrupted one is done again.
if [[ ! -f $data/data/meta.properties ]]; then
  # A cluster id is 16 random bytes in URL-safe base64; a leading dash would read as an option.
  until id=$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=') && [[ $id != -* ]]; do :; done
  "$java" "${java_opts[@]}" kafka.tools.StorageTool format --ignore-formatted \
    --config "$data/server.properties" --cluster-id "$id"
fi

echo "127.0.0.1:$port" >"$data/address"
# KAFKA_HEAP_OPTS may hold several options, so it is split on purpose.
# shellcheck disable=SC2086
exec "$java" ${KAFKA_HEAP_OPTS:--Xmx512m -XX:+UseSerialGC} -XX:+ExitOnOutOfMemoryError "${java_opts[@]}" \
  kafka.Kafka "$data/server.properties"
