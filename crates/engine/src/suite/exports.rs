//! Tests of exported layers: a sandbox with the layer must see exactly what the sandbox saw that it was exported from.
//! Covers the special cases of overlays that templates meet.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Bench, TIMEOUT, health, run};
use crate::{Engine, Sandbox, StartSpec, TemplateImage};

/// Changes that overlays store in a special form.
const CHANGES: &str = "set -e
    echo new > /srv/new; chown 1000:1000 /srv/new; chmod 4750 /srv/new
    ln /srv/new /srv/same; ln -s new /srv/link; mkfifo /srv/pipe
    rm /etc/debian_version
    rm -r /opt && mkdir /opt && touch /opt/only
    mv /usr/share/zoneinfo /usr/share/zones
    python3 -c 'import os; os.setxattr(\"/srv/new\", \"user.note\", b\"kept\")'
    mkdir -p /srv/deep && cd /srv/deep && for i in $(seq 300); do mkdir d && cd d; done; touch bottom";

/// Prints what both sandboxes must see alike.
const LOOK: &str = "stat -c '%n %u %g %a %h %s' /srv/new /srv/same; readlink /srv/link; cat /srv/new
    test -p /srv/pipe && echo pipe
    ls /etc/debian_version 2>/dev/null; ls -A /opt; ls -d /usr/share/zoneinfo 2>/dev/null
    ls /usr/share/zones | md5sum; md5sum < /usr/share/zones/UTC
    python3 -c 'import os; print(os.getxattr(\"/srv/new\", \"user.note\"))'
    find /srv/deep -name bottom | wc -l";

impl<F, Fut> Bench<F>
where
    F: Fn(PathBuf) -> Fut,
    Fut: Future<Output = Arc<dyn Engine>>,
{
    /// An exported layer contains the changed files, and a sandbox on top of it sees the same tree, over two generations.
    pub async fn exports_layers(&self, data: &Path) {
        let engine = self.engine(data).await;
        let first = self.start(&engine).await;
        run(&*first, "mkdir -p /opt /usr/share/zoneinfo; touch /opt/old").await;
        let done = run(&*first, CHANGES).await;
        assert_eq!(done.exit_code, 0, "{done:?}");
        let seen = run(&*first, LOOK).await;
        let layer = data.join("layer");
        first.export_layer(&layer).await.expect("the layer is exported");
        assert_eq!(run(&*first, "echo alive").await.stdout, "alive\n");
        first.kill().await.expect("the sandbox ends");

        let second = self.start_on(&engine, &[&layer]).await;
        assert_eq!(run(&*second, LOOK).await.stdout, seen.stdout);
        let again = "mv /usr/share/zones /usr/share/zones2 && touch /srv/second && rm /opt/only";
        assert_eq!(run(&*second, again).await.exit_code, 0);
        let upper = data.join("upper");
        second.export_layer(&upper).await.expect("the layer is exported");
        second.kill().await.expect("the sandbox ends");

        let third = self.start_on(&engine, &[&upper, &layer]).await;
        let look = "ls -A /opt | wc -l; ls /srv/second /srv/new; md5sum < /usr/share/zones2/UTC; ls /usr/share/zones";
        let third_seen = run(&*third, look).await;
        assert!(third_seen.stdout.starts_with("0\n/srv/new\n/srv/second\n"), "{third_seen:?}");
        assert!(third_seen.stderr.contains("cannot access '/usr/share/zones'"), "{third_seen:?}");
        third.kill().await.expect("the sandbox ends");
        engine.shutdown().await;
    }

    /// Starts a sandbox of the template with more layers on top, uppermost first.
    async fn start_on(&self, engine: &Arc<dyn Engine>, layers: &[&Path]) -> Arc<dyn Sandbox> {
        let own = layers.iter().map(|layer| layer.to_path_buf());
        let template =
            TemplateImage { layers: own.chain(self.layers.iter().cloned()).collect(), engine: None };
        let sandbox = engine
            .start(StartSpec { template, ..self.spec() })
            .await
            .expect("the sandbox starts on the layer");
        tokio::time::timeout(TIMEOUT, health(&*sandbox)).await.expect("envd answers");
        sandbox
    }
}
