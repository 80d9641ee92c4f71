use engine::*;
use engine_container::*;
#[tokio::test]
async fn smoke() {
    let dir = tempfile::tempdir().unwrap();
    let config = ContainerConfig {
        data_dir: dir.path().join("data"),
        run_dir: "/run/cofferdam".into(),
        agent: std::env::var("ENVD").unwrap().into(),
        pool: 2,
        gateway: Default::default(),
    };
    let engine = ContainerEngine::open(&config).unwrap();
    engine.sweep(&[]).await.unwrap();
    for i in 0..5 {
        let t = std::time::Instant::now();
        let sb = engine
            .start(StartSpec {
                id: SandboxId::generate(),
                template: TemplateImage { layers: vec!["/tmp/base/rootfs".into()] },
                resources: Resources::default(),
                hostname: "sandbox".into(),
                egress: Default::default(),
            })
            .await
            .unwrap();
        println!("start {:?}", t.elapsed());
        use tokio::io::*;
        let mut c = sb.dial(49983).await.unwrap();
        c.write_all(b"GET /health HTTP/1.0\r\n\r\n").await.unwrap();
        let mut s = String::new();
        c.read_to_string(&mut s).await.unwrap();
        println!("health {:?} {s}", t.elapsed());
        if std::env::var("HOLD").is_ok() {
            println!("{:?}", sb.private_dir());
            tokio::time::sleep(std::time::Duration::from_secs(600)).await;
        }
        let t = std::time::Instant::now();
        sb.kill().await.unwrap();
        println!("kill {:?} {:?}", t.elapsed(), sb.exit().borrow());
    }
    engine.shutdown().await;
}
