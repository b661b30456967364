//! tonic, unary.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Result;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Request, Response, Status,
    transport::{Endpoint, Server},
};

use crate::Act;

#[allow(clippy::all, reason = "it is generated")]
mod proto {
    tonic::include_proto!("echo");
}

use proto::{
    Payload,
    echo_client::EchoClient,
    echo_server::{Echo, EchoServer},
};

struct Answer;

#[tonic::async_trait]
impl Echo for Answer {
    async fn echo(&self, request: Request<Payload>) -> Result<Response<Payload>, Status> {
        Ok(Response::new(request.into_inner()))
    }
}

pub(crate) async fn serve() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let service = EchoServer::new(Answer).max_decoding_message_size(32 << 20);
    tokio::spawn(
        Server::builder()
            .tcp_nodelay(true)
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    Ok(address)
}

pub(crate) async fn connect(host: &str, connections: usize) -> Result<Act> {
    let mut clients = Vec::new();
    for _ in 0..connections {
        let endpoint = Endpoint::from_shared(format!("http://{host}"))?.tcp_nodelay(true);
        let client = EchoClient::new(endpoint.connect().await?);
        clients.push(client.max_decoding_message_size(32 << 20));
    }
    Ok(Arc::new(move |number, body| {
        let mut client = clients[number % clients.len()].clone();
        Box::pin(async move {
            let sent = Payload {
                at: 0,
                body: (*body).clone(),
            };
            match client.echo(sent.clone()).await {
                Ok(reply) if *reply.get_ref() == sent => Ok(1),
                Ok(_) => Err("the reply is another's".to_owned()),
                Err(status) => Err(status.to_string()),
            }
        })
    }))
}
