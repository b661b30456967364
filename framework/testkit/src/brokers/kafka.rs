//! Apache Kafka: one node that is broker and controller, from jars that Maven fetches.

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use super::{
    Broker, Kind, Link, Prepared, Security, Unavailable, connect, find_program, free_port, names,
    security,
};
use crate::cache;

/// The name of the jars' folder, with the version that the project file asks for.
const JARS: &str = "kafka-4.3.0";
const POM: &str = include_str!("../../kafka/pom.xml");
/// 44 MB through a slow line.
const FETCH_LIMIT: Duration = Duration::from_secs(900);
const FORMAT_LIMIT: Duration = Duration::from_secs(120);
/// A description of one broker is a hundred bytes.
const ANSWER_LIMIT: usize = 64 * 1024;

/// A small heap and the first compiler only: ready in two seconds, quick enough for tests and demonstrations.
const JVM: [&str; 5] = [
    "-Xmx512m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Dfile.encoding=UTF-8",
];

pub(super) fn prepare(broker: &Broker) -> Result<Prepared, Unavailable> {
    let java = find_program("java").ok_or_else(|| Kind::Kafka.missing("java"))?;
    let libs = jars()?;
    let folder = &broker.data_dir;
    let properties = folder.join("server.properties");
    let Configured { cluster, door } = configure(broker, &properties).map_err(|error| {
        Kind::Kafka.unavailable(format_args!("write {}: {error}", properties.display()))
    })?;
    if !folder.join("data/meta.properties").exists() {
        format(&java, &libs, broker, &cluster)?;
    }
    let mut command = java_command(&java, &libs);
    command
        .arg("kafka.Kafka")
        .arg(&properties)
        .current_dir(folder);
    Ok(Prepared {
        command,
        probe: Box::new(move |_, _| describes_itself(door, &cluster)),
    })
}

/// The folder with Kafka's jars, in the cache folder of the user; fetched through Maven the first time.
///
/// # Errors
///
/// [`Unavailable`] when the jars are not there and Maven is missing or fails.
pub fn jars() -> Result<PathBuf, Unavailable> {
    if let Some(libs) = cache::place(JARS).filter(|libs| libs.is_dir()) {
        return Ok(libs);
    }
    let maven = find_program("mvn").ok_or_else(|| Kind::Kafka.missing("mvn"))?;
    let make = |scratch: &Path, deadline| copy_jars(&maven, scratch, deadline);
    cache::fetch(JARS, FETCH_LIMIT, make).map_err(|error| {
        Kind::Kafka.unavailable(format_args!("fetch its jars through Maven: {error}"))
    })
}

pub(super) fn jars_are_cached() -> bool {
    cache::has(JARS)
}

fn copy_jars(maven: &Path, scratch: &Path, deadline: Instant) -> io::Result<PathBuf> {
    let pom = scratch.join("pom.xml");
    let libs = scratch.join("libs");
    fs::write(&pom, POM)?;
    let mut command = Command::new(maven);
    command
        .args(["-q", "-B", "--strict-checksums", "-f"])
        .arg(&pom)
        .arg("dependency:copy-dependencies")
        .arg("-DincludeScope=runtime")
        .arg(format!("-DoutputDirectory={}", libs.display()));
    cache::run(&mut command, &scratch.join("maven.log"), deadline)?;
    Ok(libs)
}

struct Configured {
    /// The id of the cluster, which must not change.
    cluster: String,
    /// The port that the probe, which speaks neither TLS nor SASL, can ask at.
    door: u16,
}

/// Writes the configuration anew at each start, as the port may have changed.
fn configure(broker: &Broker, path: &Path) -> io::Result<Configured> {
    let folder = &broker.data_dir;
    let id_file = folder.join("cluster.id");
    let cluster = match fs::read_to_string(&id_file) {
        Ok(id) => id.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = cluster_id();
            fs::write(&id_file, &id)?;
            id
        }
        Err(error) => return Err(error),
    };
    let port = broker.port;
    let controller = free_port()?;
    // Who comes through a proxy is sent there again, and everybody else is not.
    let (link, link_advertised, link_protocol) = match broker.link {
        Some(Link { proxy, port }) => (
            format!(",LINK://127.0.0.1:{port}"),
            format!(",LINK://127.0.0.1:{proxy}"),
            match broker.security {
                None => ",LINK:PLAINTEXT",
                Some(_) => ",LINK:SASL_SSL",
            },
        ),
        None => (String::new(), String::new(), ""),
    };
    let data = folder.join("data");
    // Properties files read a backslash as an escape.
    let data = data.display().to_string().replace('\\', "\\\\");
    let more = broker.properties.join("\n");
    let door = match &broker.security {
        None => port,
        Some(_) => free_port()?,
    };
    let (secure, secure_listener) = match &broker.security {
        None => (String::new(), String::new()),
        Some(security) => (
            secure(folder, security)?,
            format!("SASL_SSL://127.0.0.1:{port},"),
        ),
    };
    fs::write(
        path,
        format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.bootstrap.servers=127.0.0.1:{controller}\n\
             controller.listener.names=CONTROLLER\n\
             listeners={secure_listener}PLAINTEXT://127.0.0.1:{door},CONTROLLER://127.0.0.1:{controller}{link}\n\
             advertised.listeners={secure_listener}PLAINTEXT://127.0.0.1:{door},CONTROLLER://127.0.0.1:{controller}{link_advertised}\n\
             inter.broker.listener.name=PLAINTEXT\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL{link_protocol}\n\
             {secure}\
             log.dirs={data}\n\
             # One node: nothing is replicated.\n\
             default.replication.factor=1\n\
             min.insync.replicas=1\n\
             offsets.topic.replication.factor=1\n\
             offsets.topic.num.partitions=4\n\
             transaction.state.log.replication.factor=1\n\
             transaction.state.log.min.isr=1\n\
             transaction.state.log.num.partitions=4\n\
             share.coordinator.state.topic.replication.factor=1\n\
             share.coordinator.state.topic.min.isr=1\n\
             share.coordinator.state.topic.num.partitions=4\n\
             # The first member of a group does not wait for others.\n\
             group.initial.rebalance.delay.ms=0\n\
             # Back in five seconds after a kill; with the defaults the controller waits out the old session. Less\n\
             # fences a broker that is slow because everybody is.\n\
             broker.session.timeout.ms=3000\n\
             broker.heartbeat.interval.ms=300\n\
             # 128 MiB of the heap by default, and with the partitions of all tests there is none left.\n\
             log.cleaner.dedupe.buffer.size=8388608\n\
             # A mistyped topic is an error. nestling creates the topics it needs.\n\
             auto.create.topics.enable=false\n\
             {more}\n"
        ),
    )?;
    Ok(Configured { cluster, door })
}

/// The lines for the listener of those who have to prove themselves. Its store is certificate and key in one file.
fn secure(folder: &Path, security: &Security) -> io::Result<String> {
    let store = folder.join("store.pem");
    let Security {
        certificate,
        key,
        user,
        password,
        ..
    } = security;
    fs::write(&store, format!("{key}{certificate}"))?;
    let (store, trusted) = (store.display(), security::authority(folder));
    let trusted = trusted.display();
    let module = "org.apache.kafka.common.security";
    let mut lines = format!(
        "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n\
         ssl.client.auth=required\n\
         ssl.keystore.type=PEM\n\
         ssl.keystore.location={store}\n\
         ssl.truststore.type=PEM\n\
         ssl.truststore.location={trusted}\n"
    );
    for listener in ["sasl_ssl", "link"] {
        let listener = format!("listener.name.{listener}");
        lines += &format!(
            "{listener}.plain.sasl.jaas.config={module}.plain.PlainLoginModule required user_{user}=\"{password}\";\n\
             {listener}.scram-sha-256.sasl.jaas.config={module}.scram.ScramLoginModule required;\n\
             {listener}.scram-sha-512.sasl.jaas.config={module}.scram.ScramLoginModule required;\n"
        );
    }
    Ok(lines)
}

/// Kafka's form of an id: 16 bytes as 22 characters of URL-safe base64, the last of which has only two bits. A leading
/// dash would be taken for an option.
fn cluster_id() -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bits = u128::from(names::random()) << 64 | u128::from(names::random());
    let digit = |index: u128| char::from(ALPHABET[(index & 63) as usize]);
    let mut id: String = (0..21)
        .map(|place| digit(bits >> (122 - 6 * place)))
        .collect();
    id.push(digit((bits & 3) << 4));
    if id.starts_with('-') {
        id.replace_range(..1, "N");
    }
    id
}

fn format(java: &Path, libs: &Path, broker: &Broker, cluster: &str) -> Result<(), Unavailable> {
    let folder = &broker.data_dir;
    let mut command = java_command(java, libs);
    command
        .args(["kafka.tools.StorageTool", "format", "--standalone"])
        .args(["-t", cluster, "-c"])
        .arg(folder.join("server.properties"))
        .current_dir(folder);
    if let Some(Security { user, password, .. }) = &broker.security {
        for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            let user = format!("{mechanism}=[name={user},password={password}]");
            command.args(["--add-scram", &user]);
        }
    }
    let deadline = Instant::now() + FORMAT_LIMIT;
    cache::run(&mut command, &folder.join("format.log"), deadline)
        .map_err(|error| Kind::Kafka.unavailable(format_args!("format its storage: {error}")))
}

fn java_command(java: &Path, libs: &Path) -> Command {
    let mut command = Command::new(java);
    command.args(JVM).arg("-cp").arg(libs.join("*"));
    command
}

/// Asks for the members of the cluster (`Metadata`, version 2, no topics). The answer has the cluster's id, and at least
/// one broker once that is ready for work; the port alone opens earlier.
fn describes_itself(port: u16, cluster: &str) -> io::Result<bool> {
    const METADATA: i16 = 3;
    const CORRELATION: i32 = 7;

    let mut request = Vec::new();
    request.extend(METADATA.to_be_bytes());
    request.extend(2_i16.to_be_bytes());
    request.extend(CORRELATION.to_be_bytes());
    request.extend((-1_i16).to_be_bytes()); // no client id
    request.extend(0_i32.to_be_bytes()); // no topics
    let mut stream = connect(port)?;
    stream.write_all(&(request.len() as u32).to_be_bytes())?;
    stream.write_all(&request)?;

    let length = u32::from_be_bytes(read_array(&mut stream)?) as usize;
    if !(8..=ANSWER_LIMIT).contains(&length) {
        return Ok(false);
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    let mut fields = answer.as_slice();
    let correlation = i32::from_be_bytes(read_array(&mut fields)?);
    let brokers = i32::from_be_bytes(read_array(&mut fields)?);
    let names_cluster = fields
        .windows(cluster.len())
        .any(|window| window == cluster.as_bytes());
    Ok(correlation == CORRELATION && brokers > 0 && names_cluster)
}

fn read_array<const N: usize>(reader: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::cluster_id;

    #[test]
    fn cluster_ids_have_kafkas_form() {
        let ids: HashSet<String> = (0..1000).map(|_| cluster_id()).collect();
        assert_eq!(ids.len(), 1000);
        for id in ids {
            assert_eq!(id.len(), 22, "{id}");
            assert!(!id.starts_with('-'), "{id}");
            assert!(id.ends_with(['A', 'Q', 'g', 'w']), "{id}");
        }
    }
}
