# The action's image. The binary in it is also what is brought to the server, so it is static and runs on any Linux.
# No USER and no WORKDIR: GitHub runs container actions as root, in a folder of its own.

ARG BUILDER=rust:1-bookworm
ARG BASE=debian:bookworm-slim

FROM ${BUILDER} AS build
ARG TARGET=x86_64-unknown-linux-gnu
COPY . /build
# With --target the flags concern the binary alone, not the build scripts and macros that run here.
RUN cd /build \
    && RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --release --target "${TARGET}" --bin model-swap \
    && install -D -m 755 "target/${TARGET}/release/model-swap" /out/model-swap

FROM ${BASE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates openssh-client \
    && rm -rf /var/lib/apt/lists/* \
    && ln -s model-swap /usr/local/bin/model-swap-afterwards
COPY --from=build /out/model-swap /usr/local/bin/model-swap
ENTRYPOINT ["/usr/local/bin/model-swap"]
