use super::*;

fn in_container(path: &str) -> Option<String> {
    container(&["/".to_owned(), path.to_owned()])
}

#[test]
fn containers_are_known_by_their_control_group() {
    let id = "0123456789abcdef".repeat(4);
    for path in [
        format!("/system.slice/docker-{id}.scope"),
        format!("/docker/{id}"),
        format!(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-{id}.scope"
        ),
        format!("/machine.slice/libpod-{id}.scope/container"),
    ] {
        assert_eq!(in_container(&path).as_ref(), Some(&id), "{path}");
    }
    for path in [
        "/system.slice/ssh.service",
        "/user.slice/user-1000.slice/session-2.scope",
        "/docker/0123",
        "/",
    ] {
        assert_eq!(in_container(path), None, "{path}");
    }
}

#[test]
fn services_are_the_leaf_alone() {
    let system = |unit: &str| Some(Unit { name: unit.to_owned(), user: None });
    assert_eq!(service("/system.slice/vllm.service"), system("vllm.service"));
    assert_eq!(service("/system.slice/system-vllm.slice/vllm@a.service"), system("vllm@a.service"));
    let of_user = "/user.slice/user-1000.slice/user@1000.service/app.slice/vllm.service";
    assert_eq!(service(of_user), Some(Unit { name: "vllm.service".to_owned(), user: Some(1000) }));
    for path in [
        "/user.slice/user-1000.slice/session-2.scope",
        "/user.slice/user-1000.slice/user@1000.service/app.slice/tmux-spawn-1.scope",
        "/user.slice/user-1000.slice/user@1000.service",
        "/system.slice/docker.service/inner",
        "/",
    ] {
        assert_eq!(service(path), None, "{path}");
    }
}

#[test]
fn a_published_port_belongs_to_a_container() {
    let argv = "/usr/bin/docker-proxy -proto tcp -host-port 8001 -container-ip 172.17.0.2 -container-port 8000";
    let argv = shell_words::split(argv).unwrap();
    assert_eq!(published(&argv).unwrap(), "behind docker-proxy, at 172.17.0.2:8000");
    let filtered = ["/usr/bin/dockerd", "--userland-proxy=false"].map(str::to_owned);
    assert_eq!(published(&filtered).unwrap(), "behind dockerd");
    assert_eq!(published(&["vllm".to_owned(), "serve".to_owned()]), None);
    assert_eq!(published(&[]), None);
}
