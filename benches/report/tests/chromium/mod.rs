//! A headless Chromium, spoken to by its own protocol over a web socket.
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{json, Value};
use tungstenite::stream::MaybeTlsStream;
use tungstenite::{Message, WebSocket};

/// The names that it is installed under.
const NAMES: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];

/// A running browser with one page.
pub struct Chromium {
    child: Child,
    _profile: tempfile::TempDir,
    socket: WebSocket<MaybeTlsStream<TcpStream>>,
    session: String,
    next_id: u64,
    log: Log,
}

/// What a page did since it was opened.
#[derive(Default)]
pub struct Log {
    /// Calls of the console, uncaught exceptions, and the browser's own entries.
    pub console: Vec<Value>,
    /// Every address that was asked for.
    pub requests: Vec<String>,
}

impl Chromium {
    /// Starts it; `None` where none is installed.
    pub fn start() -> Option<Self> {
        let profile = tempfile::tempdir().expect("a folder for the profile");
        let mut child = NAMES.iter().find_map(|name| {
            let mut command = Command::new(name);
            command.args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
            ]);
            command.args([
                "--remote-debugging-port=0",
                "--no-first-run",
                "--disable-background-networking",
            ]);
            command.arg(format!("--user-data-dir={}", profile.path().display()));
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped());
            command.spawn().ok()
        })?;
        let lines = BufReader::new(child.stderr.take().expect("standard error is a pipe")).lines();
        let mut lines = lines.map_while(Result::ok);
        let address = lines.find_map(|line| line.strip_prefix("DevTools listening on ").map(String::from));
        let address = address.expect("Chromium ended before it listened");
        // It goes on writing; nobody reads, but the pipe must stay open.
        std::thread::spawn(move || lines.for_each(drop));
        let (mut socket, _) = tungstenite::connect(&address).expect("Chromium takes a connection");
        if let MaybeTlsStream::Plain(stream) = socket.get_mut() {
            stream
                .set_read_timeout(Some(Duration::from_secs(60)))
                .expect("a limit can be set");
        }
        let mut browser = Chromium {
            child,
            _profile: profile,
            socket,
            session: String::new(),
            next_id: 0,
            log: Log::default(),
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = attached["sessionId"].as_str().expect("a session").into();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        Some(browser)
    }

    /// Sets the width of the window and the colours that its user prefers.
    pub fn emulate(&mut self, width: u64, scheme: &str) {
        let size = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", size);
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", features);
    }

    /// Opens an address and waits until all of it is there.
    pub fn open(&mut self, url: &str) -> Log {
        self.log = Log::default();
        self.call("Page.navigate", json!({ "url": url }));
        while self.evaluate("document.readyState + location.href") != json!(format!("complete{url}")) {}
        std::mem::take(&mut self.log)
    }

    /// The value of a JavaScript expression.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let arguments = json!({ "expression": expression, "returnByValue": true });
        let result = self.call("Runtime.evaluate", arguments);
        assert!(result["exceptionDetails"].is_null(), "{result}");
        result["result"]["value"].clone()
    }

    /// A picture of the whole page.
    pub fn screenshot(&mut self) -> Vec<u8> {
        let arguments = json!({ "format": "png", "captureBeyondViewport": true });
        let result = self.call("Page.captureScreenshot", arguments);
        data_encoding::BASE64
            .decode(result["data"].as_str().expect("a picture").as_bytes())
            .expect("base64")
    }

    fn call(&mut self, method: &str, arguments: Value) -> Value {
        self.next_id += 1;
        let id = self.next_id;
        let mut message = json!({ "id": id, "method": method, "params": arguments });
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        self.socket
            .send(Message::text(message.to_string()))
            .expect("Chromium listens");
        loop {
            let Message::Text(text) = self.socket.read().expect("Chromium answers within a minute") else {
                continue;
            };
            let answer: Value = serde_json::from_str(&text).expect("JSON");
            if answer["id"] == json!(id) {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
            self.note(&answer);
        }
    }

    fn note(&mut self, event: &Value) {
        let what = &event["params"];
        match event["method"].as_str() {
            Some("Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded") => {
                self.log.console.push(what.clone());
            }
            Some("Network.requestWillBeSent") => {
                self.log
                    .requests
                    .push(what["request"]["url"].as_str().unwrap_or("?").into());
            }
            _ => {}
        }
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
