// Package embedded runs the two servers that the system needs, Postgres and a
// Kafka-protocol broker, on one machine for laptops and tests, without Docker.
//
//   - [StartPostgres] runs a real Postgres: the machine's own, or one fetched
//     from Maven Central. Its data directory survives restarts, and a server
//     left over from a kill -9 is stopped before the next one starts.
//   - [StartKafka] runs a development broker inside this process: it speaks
//     Kafka's protocol and keeps its data on disk, yet it is not Kafka.
//   - [StartApacheKafka] runs a real single-node Apache Kafka as a child
//     process, where Java and Maven are present.
//
// Linux and macOS are supported; on Windows use WSL.
package embedded
