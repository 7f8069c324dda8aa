//! Asks Sentinels who the master is. As in Redis's guidelines for clients: the first that answers is believed, and who
//! it names must call itself a master.

use redis::{RedisError, aio::MultiplexedConnection};
use tokio::time::timeout;

use super::{
    Endpoint, RedisOptions,
    connect::{CONNECT_TIMEOUT, dial},
    secrets::Secrets,
    trouble::Trouble,
};

/// The master, by the first Sentinel that knows one.
///
/// # Errors
/// What the last one said.
pub(super) async fn find_master(
    options: &RedisOptions,
    secrets: &Secrets,
    master_name: &str,
) -> Result<Endpoint, Trouble> {
    let mut trouble = Trouble::unreachable("no Sentinel is configured");
    for sentinel in &options.endpoints {
        let asked = timeout(CONNECT_TIMEOUT, ask(options, secrets, sentinel, master_name)).await;
        let late = || Trouble::unreachable("no answer within one second");
        match asked.unwrap_or_else(|_| Err(late())) {
            Ok(Some(master)) => return Ok(master),
            Ok(None) => {
                let message = format!("Sentinel {sentinel} knows no master {master_name:?}");
                trouble = Trouble::refused("UnknownMaster", message);
            }
            Err(error) => {
                trouble = Trouble { message: format!("Sentinel {sentinel}: {}", error.message), ..error };
            }
        }
    }
    Err(trouble)
}

async fn ask(
    options: &RedisOptions,
    secrets: &Secrets,
    sentinel: &Endpoint,
    master_name: &str,
) -> Result<Option<Endpoint>, Trouble> {
    let mut connection = dial(options, secrets, sentinel).await?;
    let mut answer = master_addr(&mut connection, master_name).await;
    // Sentinels have passwords of their own, mostly none; one that wants one is offered that of the servers.
    if let (Some("NOAUTH"), Some(password)) = (answer.as_ref().err().and_then(RedisError::code), &secrets.password) {
        let auth = redis::cmd("AUTH").arg(secrets.user.as_deref()).arg(password).exec_async(&mut connection).await;
        auth.map_err(|error| Trouble::from(&error))?;
        answer = master_addr(&mut connection, master_name).await;
    }
    let answer = answer.map_err(|error| Trouble::from(&error))?;
    Ok(answer.map(|(host, port)| Endpoint { host, port }))
}

async fn master_addr(
    connection: &mut MultiplexedConnection,
    master_name: &str,
) -> Result<Option<(String, u16)>, RedisError> {
    redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(master_name).query_async(connection).await
}
