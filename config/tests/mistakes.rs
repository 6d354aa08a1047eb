//! Every mistake has one message, told in the order of the file, all of them at once.

use forebay_config::{Config, Machine};

const GOOD: &str = r#"
[daemon]
cores = [0, 1]
[[device]]
driver = "uring"
path = "/dev/nvme0n1"
[[listen]]
transport = "tcp"
address = "127.0.0.1:7400"
[[namespace]]
name = "default"
class = "durable"
"#;

fn messages(text: &str, cpus: usize) -> Vec<String> {
    match Config::parse("f.toml", text, &Machine { cpus }) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn the_base_that_the_mistakes_are_made_in_is_good() {
    assert_eq!(messages(GOOD, 2), [""; 0]);
}

/// One edit of [`GOOD`], and the one message it gives.
#[test]
fn each_mistake_has_its_exact_message() {
    for (from, to, expected) in [
        // Keys.
        ("cores", "core", "f.toml:3: unknown key `core` in [daemon]; write `cores`"),
        (
            "cores = [0, 1]",
            "colour = 1",
            "f.toml:3: unknown key `colour` in [daemon]; remove it; [daemon] takes admin_socket, \
             arena, cores, drain_timeout_ms, dram_tier, idle_after_us, index, keep_alive_ms, \
             queue_depth",
        ),
        (
            "[daemon]\ncores = [0, 1]",
            "[deamon]",
            "f.toml:2: unknown key `deamon` in the file; write `daemon`",
        ),
        (
            "class",
            "clas = 1\nclass",
            "f.toml:12: unknown key `clas` in [[namespace]]; write `class`",
        ),
        (
            "[[device]]",
            "[device]",
            "f.toml:4: `device` is a table; write [[device]] above each one",
        ),
        // [daemon].
        ("[0, 1]", "\"0\"", "f.toml:3: `cores` is a string, not a list; write cores = [0, 1]"),
        ("[0, 1]", "[]", "f.toml:3: `cores` is an empty list; write cores = [0, 1]"),
        (
            "[0, 1]",
            "[0, \"1\"]",
            "f.toml:3: `cores` holds a value that is a string, not an integer; write cores = [0, 1]",
        ),
        (
            "[0, 1]",
            "[-1]",
            "f.toml:3: `cores` holds a value that is -1, outside 0 to 65535; write cores = [0, 1]",
        ),
        ("[0, 1]", "[0,\n 2]", "f.toml:4: core 2 does not exist; write cores from 0 to 1"),
        ("[0, 1]", "[0, 0]", "f.toml:3: core 0 is listed twice; write each core once"),
        (
            "[0, 1]",
            "[0, 1]\narena = 256",
            "f.toml:4: `arena` is an integer, not a size; write a size like arena = \"256MiB\"",
        ),
        (
            "[0, 1]",
            "[0, 1]\ndram_tier = 4",
            "f.toml:4: `dram_tier` is an integer, not a size; write a size like dram_tier = \
             \"4GiB\", or nothing for none",
        ),
        (
            "[0, 1]",
            "[0, 1]\narena = \"256MB\"",
            "f.toml:4: `arena` is \"256MB\", which is no size; write a size like arena = \"256MiB\"",
        ),
        (
            "[0, 1]",
            "[0, 1]\narena = \"16MiB\"",
            "f.toml:4: the arena of 16MiB is smaller than the queues need (2 cores, 1 device, \
             queue_depth 128); write arena = \"80MiB\"",
        ),
        (
            "[0, 1]",
            "[0, 1]\nqueue_depth = 4000",
            "f.toml:2: the arena of 256MiB is smaller than the queues need (2 cores, 1 device, \
             queue_depth 4000); write arena = \"576MiB\"",
        ),
        (
            "[0, 1]",
            "[0, 1]\nindex = \"1KiB\"",
            "f.toml:4: `index` is 1KiB, less than 1MiB; write a size like index = \"256MiB\"",
        ),
        (
            "[0, 1]",
            "[0, 1]\nqueue_depth = 0",
            "f.toml:4: `queue_depth` is 0, outside 1 to 4096; write queue_depth = 128",
        ),
        (
            "[0, 1]",
            "[0, 1]\nidle_after_us = 1.5",
            "f.toml:4: `idle_after_us` is a float, not an integer; write idle_after_us = 200",
        ),
        (
            "[0, 1]",
            "[0, 1]\ndrain_timeout_ms = 9999999",
            "f.toml:4: `drain_timeout_ms` is 9999999, outside 0 to 600000; write drain_timeout_ms = 10000",
        ),
        (
            "[0, 1]",
            "[0, 1]\nkeep_alive_ms = 5",
            "f.toml:4: `keep_alive_ms` is 5, outside 100 to 600000; write keep_alive_ms = 10000",
        ),
        (
            "[0, 1]",
            "[0, 1]\nadmin_socket = \"\"",
            "f.toml:4: `admin_socket` is empty; write admin_socket = \"/run/forebay/admin.sock\"",
        ),
        // [[device]].
        (
            "driver = \"uring\"\n",
            "",
            "f.toml:4: [[device]] has no `driver`; write driver = \"vfio\" (an NVMe drive, by its \
             PCI address), \"uring\" (a file or block device) or \"sim\" (memory)",
        ),
        (
            "uring",
            "urng",
            "f.toml:5: `driver` is \"urng\", which is not known; write driver = \"vfio\" (an NVMe drive, by its \
             PCI address), \"uring\" (a file or block device) or \"sim\" (memory)",
        ),
        (
            "driver = \"uring\"\npath = \"/dev/nvme0n1\"",
            "driver = \"vfio\"\npci = \"65:00.0\"",
            "f.toml:6: `pci` is \"65:00.0\", which is no PCI address; write pci = \"0000:03:00.0\"; \
             `forebay devices list` shows the addresses",
        ),
        (
            "driver = \"uring\"\npath = \"/dev/nvme0n1\"",
            "driver = \"vfio\"\npci = \"+000:65:00.0\"",
            "f.toml:6: `pci` is \"+000:65:00.0\", which is no PCI address; write pci = \"0000:03:00.0\"; \
             `forebay devices list` shows the addresses",
        ),
        (
            "driver = \"uring\"\npath = \"/dev/nvme0n1\"",
            "driver = \"vfio\"\npci = \"0000:65:00.0\"\ntimeout_ms = 1",
            "f.toml:7: `timeout_ms` is 1, outside 10 to 600000; write timeout_ms = 5000",
        ),
        (
            "driver = \"uring\"\npath = \"/dev/nvme0n1\"",
            "driver = \"vfio\"",
            "f.toml:4: [[device]] has no `pci`; write pci = \"0000:03:00.0\"; `forebay devices list` \
             shows the addresses",
        ),
        (
            "path = \"/dev/nvme0n1\"\n",
            "",
            "f.toml:4: [[device]] has no `path`; write path = \"/var/lib/forebay/forebay.img\" or \
             \"/dev/nvme0n1\"",
        ),
        (
            "\"/dev/nvme0n1\"\n",
            "\"/dev/nvme0n1\"\nsize = \"4GiB\"\n",
            "f.toml:7: `size` is for a file, and a block device has its own; remove it",
        ),
        (
            "\"/dev/nvme0n1\"\n",
            "\"/srv/a.img\"\nsize = \"1MiB\"\n",
            "f.toml:7: `size` is 1MiB, less than 64MiB; write a size like size = \"4GiB\"",
        ),
        (
            "\"/dev/nvme0n1\"\n",
            "\"/srv/a.img\"\nformat_if_blank = \"yes\"\n",
            "f.toml:7: `format_if_blank` is a string, not true or false; write format_if_blank = true",
        ),
        (
            "[[device]]",
            "[[device]]\ndriver = \"uring\"\npath = \"/dev/nvme0n1\"\n[[device]]",
            "f.toml:9: device /dev/nvme0n1 is listed twice; write another path, or remove it",
        ),
        (
            "driver = \"uring\"\npath = \"/dev/nvme0n1\"",
            "driver = \"sim\"",
            "f.toml:4: [[device]] has no `size`; write size = \"1GiB\"",
        ),
        // [[listen]].
        (
            "\"tcp\"",
            "\"udp\"",
            "f.toml:8: `transport` is \"udp\", which is not known; write transport = \"tcp\", \"rdma\" or \
             \"shm\" (shared memory, on this host)",
        ),
        (
            "transport = \"tcp\"\naddress = \"127.0.0.1:7400\"",
            "transport = \"rdma\"",
            "f.toml:7: [[listen]] has no `address`; write an IP address and a port, like address = \
             \"127.0.0.1:7400\"",
        ),
        (
            "transport = \"tcp\"\naddress = \"127.0.0.1:7400\"",
            "transport = \"rdma\"\naddress = \"10.0.0.1:7400\"\npreference = 65536",
            "f.toml:10: `preference` is 65536, outside 0 to 65535; write preference = 0 (clients try \
             the lowest first)",
        ),
        (
            "transport = \"tcp\"\naddress = \"127.0.0.1:7400\"",
            "transport = \"rdma\"\naddress = \"10.0.0.1:7400\"\nreceives = 8",
            "f.toml:10: `receives` is 8, outside 64 to 32768; write receives = 4096 (shared by the \
             connections of a core; each takes 4 or more)",
        ),
        (
            "transport = \"tcp\"\naddress = \"127.0.0.1:7400\"",
            "transport = \"rdma\"\naddress = \"10.0.0.1:7400\"\n[[listen]]\ntransport = \"rdma\"\n\
             address = \"10.0.0.1:7400\"",
            "f.toml:12: listener 10.0.0.1:7400 overlaps with 10.0.0.1:7400, as each takes 2 ports, one for \
             each core; write port 7402 or higher",
        ),
        (
            "transport = \"tcp\"\naddress = \"127.0.0.1:7400\"",
            "transport = \"shm\"\npath = \"shm\"",
            "f.toml:9: `path` is \"shm\", which is not absolute; write an absolute path of at most 100 \
             bytes, like path = \"/run/forebay/shm\"",
        ),
        (
            "transport = \"tcp\"\naddress = \"127.0.0.1:7400\"",
            "transport = \"shm\"\npath = \"/run/\"",
            "f.toml:9: `path` is \"/run/\", which is a folder; write an absolute path of at most 100 bytes, \
             like path = \"/run/forebay/shm\"",
        ),
        (
            "transport = \"tcp\"\naddress = \"127.0.0.1:7400\"",
            "transport = \"shm\"\npath = \"/run/a\"\nmode = \"0999\"",
            "f.toml:10: `mode` is \"0999\", which is no mode of a file; write mode = \"0600\" (this user) or \
             \"0660\" (and its group)",
        ),
        (
            "transport = \"tcp\"\naddress = \"127.0.0.1:7400\"",
            "transport = \"shm\"\npath = \"/run/a\"\nmode = \"0440\"",
            "f.toml:10: `mode` is \"0440\", which shuts its owner out; write mode = \"0600\" (this user) or \
             \"0660\" (and its group)",
        ),
        (
            "transport = \"tcp\"\naddress = \"127.0.0.1:7400\"",
            "transport = \"shm\"\npath = \"/run/a\"\n[[listen]]\ntransport = \"shm\"\npath = \"/run/a\"",
            "f.toml:12: listener /run/a is there twice; write another path, or remove it",
        ),
        (
            "127.0.0.1:7400",
            "localhost:7400",
            "f.toml:9: `address` is \"localhost:7400\", which is no address; write an IP address and \
             a port, like address = \"127.0.0.1:7400\"",
        ),
        (
            "127.0.0.1:7400",
            "127.0.0.1:0",
            "f.toml:9: `address` has port 0; write an IP address and a port, like address = \
             \"127.0.0.1:7400\"",
        ),
        (
            "127.0.0.1:7400",
            "127.0.0.1:65535",
            "f.toml:9: port 65535 leaves no room for 2 cores, one port each; write a port up to 65534",
        ),
        (
            "[[namespace]]",
            "[[listen]]\ntransport = \"tcp\"\naddress = \"127.0.0.1:7401\"\n[[namespace]]",
            "f.toml:12: listener 127.0.0.1:7401 overlaps with 127.0.0.1:7400, as each takes 2 ports, \
             one for each core; write port 7402 or higher",
        ),
        (
            "[[namespace]]",
            "[[listen]]\ntransport = \"tcp\"\naddress = \"0.0.0.0:7399\"\n[[namespace]]",
            "f.toml:12: listener 0.0.0.0:7399 overlaps with 127.0.0.1:7400, as each takes 2 ports, \
             one for each core; write port 7402 or higher",
        ),
        // [[namespace]].
        (
            "\"default\"",
            "\"De fault\"",
            "f.toml:11: `name` is \"De fault\", which has a 'D'; write 1 to 48 of a-z 0-9 . _ -, \
             beginning with a letter or digit, like name = \"default\"",
        ),
        (
            "\"default\"",
            "\"system\"",
            "f.toml:11: `name` is \"system\", which the system itself uses; write 1 to 48 of a-z 0-9 \
             . _ -, beginning with a letter or digit, like name = \"default\"",
        ),
        (
            "\"default\"",
            "\".x\"",
            "f.toml:11: `name` is \".x\", which begins with a mark; write 1 to 48 of a-z 0-9 . _ -, \
             beginning with a letter or digit, like name = \"default\"",
        ),
        (
            "\"default\"",
            "\"1234567890123456789012345678901234567890123456789\"",
            "f.toml:11: `name` is 49 bytes long; write 1 to 48 of a-z 0-9 . _ -, beginning with a \
             letter or digit, like name = \"default\"",
        ),
        (
            "\"durable\"",
            "\"forever\"",
            "f.toml:12: `class` is \"forever\", which is not known; write class = \"durable\" (never \
             loses) or \"cache\" (may evict)",
        ),
        (
            "\"durable\"",
            "\"durable\"\nquota = \"0B\"",
            "f.toml:13: `quota` is 0; write a size like quota = \"100GiB\", or nothing for no limit",
        ),
        (
            "\"durable\"",
            "\"durable\"\nttl = \"0s\"",
            "f.toml:13: `ttl` is 0; write a duration like ttl = \"1h\" (s, m, h, d), or nothing to \
             keep values",
        ),
        (
            "\"durable\"",
            "\"durable\"\nttl = \"1y\"",
            "f.toml:13: `ttl` is \"1y\", which is no duration; write a duration like ttl = \"1h\" (s, \
             m, h, d), or nothing to keep values",
        ),
        (
            "\"durable\"",
            "\"durable\"\nttl = \"99999999d\"",
            "f.toml:13: `ttl` is 99999999d, longer than 136 years; write a duration like ttl = \"1h\" \
             (s, m, h, d), or nothing to keep values",
        ),
        (
            "\"durable\"",
            "\"durable\"\n[[namespace]]\nname = \"default\"\nclass = \"cache\"",
            "f.toml:14: namespace \"default\" is there twice; write another name, or remove it",
        ),
        // [log].
        (
            "\"durable\"",
            "\"durable\"\n[log]\nlevel = \"loud\"",
            "f.toml:14: `level` is \"loud\", which is not known; write level = \"info\" (or error, \
             warn, debug, trace)",
        ),
        (
            "\"durable\"",
            "\"durable\"\n[log]\nformat = 1",
            "f.toml:14: `format` is an integer, not a string; write format = \"text\" or \"json\"",
        ),
    ] {
        assert!(GOOD.contains(from), "{from}");
        let text = GOOD.replacen(from, to, 1);
        assert_eq!(messages(&text, 2), [expected], "{to}");
    }
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once_in_its_order() {
    let text = "[daemon]\ncores = [0, 9]\nareena = \"1GiB\"\n[[device]]\ndriver = \"disk\"\n\
                [[namespace]]\nname = \"UP\"\nclass = 3\n";
    let told = messages(text, 2);
    let lines: Vec<&str> = told.iter().map(|m| m.split(' ').next().unwrap()).collect();
    assert_eq!(
        lines,
        ["f.toml:", "f.toml:2:", "f.toml:3:", "f.toml:5:", "f.toml:7:", "f.toml:8:"],
        "{told:?}"
    );
}

#[test]
fn a_listener_has_the_keys_of_its_transport() {
    assert_eq!(
        messages(&GOOD.replace("\"tcp\"", "\"shm\""), 2),
        [
            "f.toml:7: [[listen]] has no `path`; write an absolute path of at most 100 bytes, like \
             path = \"/run/forebay/shm\"",
            "f.toml:9: unknown key `address` in [[listen]]; remove it; [[listen]] takes mode, path, \
             transport",
        ]
    );
}

#[test]
fn shared_memory_may_not_take_the_admin_socket() {
    let (tcp, shm) = ("[[namespace]]", "[[listen]]\ntransport = \"shm\"\npath = \"/run/a\"\n");
    let both = GOOD.replacen(tcp, &format!("{shm}mode = \"0660\"\n{tcp}"), 1);
    assert_eq!(messages(&both, 2), [""; 0]);
    let same = both.replacen("[daemon]", "[daemon]\nadmin_socket = \"/run/a.1\"", 1);
    assert_eq!(
        messages(&same, 2),
        ["f.toml:13: listener /run/a takes the path of the admin socket; write another path"]
    );
}

#[test]
fn an_empty_file_lacks_a_device_and_a_listener() {
    assert_eq!(
        messages("", 1),
        [
            "f.toml: there is no device; write [[device]] with driver = \"uring\" and path = \
             \"/dev/nvme0n1\"",
            "f.toml: there is no listener; write [[listen]] with transport = \"tcp\" and address = \
             \"127.0.0.1:7400\"",
        ]
    );
}

#[test]
fn a_file_that_is_not_toml_is_told_by_line() {
    let told = messages("[daemon]\ncores = [0\narena = = 1\n", 1);
    assert!(!told.is_empty());
    assert!(told.iter().all(|message| message.contains(": not TOML: ")), "{told:?}");
    assert!(told[0].starts_with("f.toml:2:") || told[0].starts_with("f.toml:3:"), "{told:?}");
}

#[test]
fn a_file_that_cannot_be_read_is_one_problem() {
    let problems = Config::load(std::path::Path::new("/nonexistent/f.toml")).unwrap_err();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].to_string().starts_with("/nonexistent/f.toml: cannot be read ("));
}
