use super::*;

fn environment() -> Environment {
    Environment { node_name: None, log_filter: None, termination_log: PathBuf::from("/nonexistent"), cores: 3 }
}

/// The message for a text that must not be accepted.
fn refusal(text: &str) -> String {
    Config::from_yaml(text, &environment()).unwrap_err().to_string()
}

#[test]
fn an_empty_file_is_the_default_configuration() {
    let config = Config::from_yaml("", &environment()).unwrap();
    let default = Config::check(NodeConfig::default(), &environment()).unwrap();
    assert_eq!(config, default);
    assert_eq!(config.node(), "node");
    assert_eq!(config.resp_threads(), 3);
}

#[test]
fn the_effective_configuration_reads_back_as_itself() {
    let config = Config::from_yaml("memory: {capacity: 5Mi, policy: TinyLfu}\nrevision: '12'", &environment());
    let config = config.unwrap();
    let yaml = config.to_yaml();
    assert!(yaml.contains("capacity: 5Mi"), "{yaml}");
    assert_eq!(Config::from_yaml(&yaml, &environment()).unwrap(), config);
}

#[test]
fn every_limit_names_field_value_and_limit() {
    let long_name = format!("cache: {{name: {}}}", "n".repeat(254));
    let table = [
        ("memory: {capacity: 512Ki}", "memory.capacity: 512Ki is below the minimum of 1Mi"),
        ("memory: {capacity: 2Ti}", "memory.capacity: 2Ti is above the maximum of 1Ti"),
        ("memory: {maxTtl: 10ms}", "memory.maxTtl: 10ms is below the minimum of 1s"),
        ("disk: {maxTtl: 87601h}", "disk.maxTtl: 87601h is above the maximum of 87600h"),
        ("disk: {memory: 15Mi}", "disk.memory: 15Mi is below the minimum of 16Mi"),
        ("disk: {minTtl: 25h}", "disk.minTtl: 25h is above the maximum of 24h"),
        ("disk: {dailyWriteBudget: 1Ki}", "disk.dailyWriteBudget: 1Ki is below the minimum of 1Mi"),
        ("compression: {threshold: 63}", "compression.threshold: 63 is below the minimum of 64"),
        ("compression: {threshold: 1Gi}", "compression.threshold: 1Gi is above the maximum of 256Mi"),
        ("disk: {path: ''}", "disk.path: \"\" names no folder"),
        ("writeQueue: {capacity: 65Gi}", "writeQueue.capacity: 65Gi is above the maximum of 64Gi"),
        ("writeQueue: {itemsMax: 99}", "writeQueue.itemsMax: 99 is below the minimum of 100"),
        (
            "writeQueue: {capacity: 1Mi}\nlimits: {valueBytesMax: 1Mi}",
            "writeQueue.capacity: 1Mi is below 1056Ki, the size of the largest entry (limits.valueBytesMax is 1Mi)",
        ),
        ("limits: {connectionsMax: 0}", "limits.connectionsMax: 0 is below the minimum of 1"),
        ("limits: {valueBytesMax: 1}", "limits.valueBytesMax: 1 is below the minimum of 1Ki"),
        ("limits: {requestTimeout: 0s}", "limits.requestTimeout: 0s is below the minimum of 1ms"),
        ("limits: {partialRequestTimeout: 2h}", "limits.partialRequestTimeout: 2h is above the maximum of 1h"),
        ("slowLog: {threshold: 2h}", "slowLog.threshold: 2h is above the maximum of 1h"),
        ("slowLog: {lengthMax: 10001}", "slowLog.lengthMax: 10001 is above the maximum of 10000"),
        (
            "telemetry: {otlp: {endpoint: 'https://collector:4318'}}",
            "telemetry.otlp.endpoint: \"https://collector:4318\" is no address such as http://localhost:4318",
        ),
        (
            "telemetry: {otlp: {endpoint: 'http://a b'}}",
            "telemetry.otlp.endpoint: \"http://a b\" is no address such as http://localhost:4318",
        ),
        ("shutdown: {drainTimeout: 61m}", "shutdown.drainTimeout: 1h1m is above the maximum of 1h"),
        ("listen: {threads: 65}", "listen.threads: 65 is above the maximum of 64"),
        (
            "listen: {resp: '127.0.0.1:7000', admin: '127.0.0.1:7000'}",
            "listen.admin: 127.0.0.1:7000 is also listen.resp",
        ),
        ("cache: {name: ''}", "cache.name: \"\" has 0 characters; 1 to 253 are allowed"),
        (&long_name, "has 254 characters; 1 to 253 are allowed"),
        ("cache: {uid: a/b}", "cache.uid: \"a/b\" has {'/'}; only letters, digits, '-', '_' and '.' are allowed"),
        ("log: {filter: 'a=b=c'}", "log.filter: \"a=b=c\" is no log filter"),
    ];
    for (text, message) in table {
        let refusal = refusal(text);
        assert!(refusal.contains(message), "for {text}\n got {refusal}\nwant {message}");
        assert_eq!(refusal.lines().count(), 1, "{refusal}");
    }
}

#[test]
fn all_broken_limits_are_reported() {
    let refusal = refusal("memory: {capacity: 1Ki}\nlisten: {threads: 99}\nlimits: {connectionsMax: 0}");
    assert_eq!(refusal.lines().count(), 3, "{refusal}");
}

#[test]
fn values_at_the_limits_are_accepted() {
    let text = "memory: {capacity: 1Mi, maxTtl: 1s}\ndisk: {memory: 16Mi, maxTtl: 87600h, minTtl: 0s, dailyWriteBudget: 1Mi}\n\
                compression: {threshold: 64}\n\
                writeQueue: {capacity: 1056Ki, itemsMax: 100}\nlisten: {threads: 64}\n\
                limits: {connectionsMax: 1, valueBytesMax: 1Mi, requestTimeout: 1ms, partialRequestTimeout: 1h}\n\
                shutdown: {drainTimeout: 0s}";
    let config = Config::from_yaml(text, &environment()).unwrap();
    assert_eq!(config.resp_threads(), 64);
}

#[test]
fn the_codec_of_the_cold_layers_is_what_the_file_says() {
    let codec = |text: &str| Config::from_yaml(text, &environment()).unwrap().codec();
    assert_eq!(codec(""), Codec { compression: envelope::Compression::None, threshold_bytes: 4096 });
    for (name, compression) in [("Lz4", envelope::Compression::Lz4), ("Zstd", envelope::Compression::Zstd)] {
        let text = format!("compression: {{algorithm: {name}, threshold: 100}}");
        assert_eq!(codec(&text), Codec { compression, threshold_bytes: 100 });
    }
}

#[test]
fn without_a_disk_the_queue_need_not_hold_the_largest_entry() {
    Config::from_yaml("disk: {mode: Disabled}\nwriteQueue: {capacity: 1Mi}", &environment()).unwrap();
}

#[test]
fn unknown_fields_are_refused_with_name_and_place() {
    let refusal = refusal("memory:\n  capacity: 5Mi\n  colour: red\n");
    assert!(refusal.starts_with("line 3 column 3: "), "{refusal}");
    assert!(refusal.contains("colour"), "{refusal}");
}

#[test]
fn malformed_values_are_refused_with_value_and_place() {
    for (text, place, word) in [
        ("memory:\n  capacity: lots", "line 2 column 13: ", "\"lots\" is not a size"),
        ("limits:\n  requestTimeout: 5", "line 2 column 19: ", "\"5\" is not a duration"),
        ("disk:\n  mode: Tape", "line 2 column 9: ", "Tape"),
        ("listen:\n  resp: here", "line 2 column 9: ", "address"),
        ("memory: [1, 2", "line 1 ", ""),
    ] {
        let refusal = refusal(text);
        assert!(refusal.starts_with(place) && refusal.contains(word), "for {text}: {refusal}");
        assert_eq!(refusal.matches("line ").count(), 1, "{refusal}");
        assert_eq!(refusal.lines().count(), 1, "{refusal}");
    }
}

#[test]
fn the_file_names_the_node_before_the_environment_does() {
    let pod = Environment { node_name: Some("sessions-1".to_owned()), ..environment() };
    assert_eq!(Config::from_yaml("", &pod).unwrap().node(), "sessions-1");
    assert_eq!(Config::from_yaml("cache: {node: mine}", &pod).unwrap().node(), "mine");
}

#[test]
fn the_environment_overrides_the_log_filter() {
    let loud = Environment { log_filter: Some("debug".to_owned()), ..environment() };
    assert_eq!(Config::from_yaml("log: {filter: warn}", &loud).unwrap().effective().log.filter, "debug");
}

#[test]
fn a_filter_that_asks_for_silence_quiets_the_welcome_too() {
    for (filter, tells) in [("info", true), ("debug", true), ("warn", false), ("error", false), ("off", false)] {
        let config = Config::from_yaml(&format!("log: {{filter: '{filter}'}}"), &environment()).unwrap();
        assert_eq!(config.tells(), tells, "{filter}");
    }
}

#[test]
fn last_words_are_written_only_where_a_file_waits_for_them() {
    let folder = tempfile::tempdir().unwrap();
    let pod = Environment { termination_log: folder.path().join("log"), ..environment() };
    pod.write_last_words("lost").unwrap();
    assert!(!pod.termination_log.exists());
    fs::write(&pod.termination_log, "").unwrap();
    pod.write_last_words("found").unwrap();
    assert_eq!(fs::read_to_string(&pod.termination_log).unwrap(), "found");
}
