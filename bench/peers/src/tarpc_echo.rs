//! tarpc over TCP with bincode.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Result;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tarpc::{
    client, context,
    serde_transport::tcp,
    server::{BaseChannel, Channel},
    tokio_serde::formats::Bincode,
};

use crate::Act;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Payload {
    at: u64,
    body: String,
}

#[tarpc::service]
trait Echo {
    async fn echo(payload: Payload) -> Payload;
}

#[derive(Clone)]
struct Server;

impl Echo for Server {
    async fn echo(self, _: context::Context, payload: Payload) -> Payload {
        payload
    }
}

pub(crate) async fn serve() -> Result<SocketAddr> {
    let mut listener = tcp::listen("127.0.0.1:0", Bincode::default).await?;
    listener.config_mut().max_frame_length(32 << 20);
    let address = listener.local_addr();
    tokio::spawn(async move {
        while let Some(connection) = listener.next().await {
            let Ok(connection) = connection else { continue };
            let channel = BaseChannel::with_defaults(connection);
            tokio::spawn(channel.execute(Server.serve()).for_each(|answer| async {
                tokio::spawn(answer);
            }));
        }
    });
    Ok(address)
}

pub(crate) async fn connect(host: &str, connections: usize) -> Result<Act> {
    let mut clients = Vec::new();
    for _ in 0..connections {
        let mut connecting = tcp::connect(host, Bincode::default);
        connecting.config_mut().max_frame_length(32 << 20);
        let mut config = client::Config::default();
        config.max_in_flight_requests = 4096;
        config.pending_request_buffer = 4096;
        clients.push(EchoClient::new(config, connecting.await?).spawn());
    }
    Ok(Arc::new(move |number, body| {
        let client = clients[number % clients.len()].clone();
        Box::pin(async move {
            let sent = Payload {
                at: 0,
                body: (*body).clone(),
            };
            let reply = client.echo(context::current(), sent.clone()).await;
            match reply {
                Ok(reply) if reply == sent => Ok(1),
                Ok(_) => Err("the reply is another's".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        })
    }))
}
