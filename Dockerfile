# The action's image: ssh, CA certificates and one static binary for each kind of processor. The binaries are also what is
# brought to the servers, so they run on any Linux; the one for the other kind lies beside the entry point.
# No USER and no WORKDIR: GitHub runs container actions as root, in a folder of its own.

ARG BUILDER=rust:1-bookworm
ARG BASE=debian:bookworm-slim

FROM ${BUILDER} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        gcc-aarch64-linux-gnu gcc-x86-64-linux-gnu libc6-dev-amd64-cross libc6-dev-arm64-cross
COPY . /build
# Each kind of processor builds both (.cargo/config.toml).
RUN cd /build \
    && for kind in x86_64 aarch64; do \
        target="$kind-unknown-linux-musl" \
        && { [ -d "$(rustc --print target-libdir --target "$target")" ] || rustup target add "$target"; } \
        && cargo build --locked --release --target "$target" --bin model-swap \
        && install -D -m 755 "target/$target/release/model-swap" "/image/usr/local/bin/model-swap-$kind" \
        || exit 1; \
    done \
    && cd /image/usr/local/bin \
    && mv "model-swap-$(uname -m)" model-swap \
    && ./model-swap --version \
    && ln -s model-swap model-swap-afterwards

# Of Debian only what ssh opens (a jump's command goes through sh), and for scanners and lawyers the records of the packages
# that it comes from.
FROM ${BASE} AS ssh
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates openssh-client \
    && mkdir -p /image/var/lib/dpkg/status.d /image/root /image/etc \
    && install -d -m 1777 /image/tmp \
    && echo "root:x:0:0:root:/root:/bin/sh" >/image/etc/passwd \
    && echo "root:x:0:" >/image/etc/group \
    && echo "hosts: files dns" >/image/etc/nsswitch.conf \
    && programs="/usr/bin/ssh /usr/bin/ssh-keygen /usr/bin/ssh-keyscan /bin/dash" \
    && files="$programs $(ldd $programs | grep -o '/[^ :]* (' | tr -d ' (' | sort -u)" \
    && cp --dereference --parents $files /etc/ssl/certs/ca-certificates.crt /image \
    && ln -s dash /image/bin/sh \
    && { echo ca-certificates; for file in $files; do \
        # Which of the two names a package has depends on its age: /lib is /usr/lib.
        dpkg-query --search "$file" "$(readlink -f "$file")" 2>/dev/null | sed 's/:.*//' | head -n 1; \
    done; } | sort -u >/tmp/packages \
    && while read -r package; do \
        dpkg --status "$package" >"/image/var/lib/dpkg/status.d/$package" \
        && cp --parents "/usr/share/doc/$package/copyright" /image || exit 1; \
    done </tmp/packages

FROM scratch
COPY --from=ssh /image /
COPY --from=build /image /
ENV PATH=/usr/local/bin:/usr/bin:/bin
ENTRYPOINT ["/usr/local/bin/model-swap"]
