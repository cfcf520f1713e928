# Each target installs what it needs first (scripts/setup: Debian packages and PyPI, only what is missing).

# A fresh rustup is in no shell's PATH yet, and Debian keeps nginx and sshd out of an ordinary user's.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin

# Demo and bench are run as they were built: `cargo run` would choose other features for them and compile all again.
BUILT := $(or $(CARGO_TARGET_DIR),target)

# Tests often wait: for models to load, for streams to end, for machines to boot. With four a processor none is ever idle.
export RUST_TEST_THREADS ?= $(shell expr 4 '*' $$(nproc))

.PHONY: demo test checked image workflows bench soak fuzz audit setup

# A throwaway GPU server on loopback, a swap and a rollback under load.
demo: setup
	cargo build --locked --workspace
	$(BUILT)/debug/demo

# Everything that must hold before a change is merged. The guest's files are fetched while the compiler is busy.
test: setup workflows
	@scripts/setup --docker
	@scripts/setup --guest & guest=$$!; $(MAKE) --no-print-directory checked; checked=$$?; wait $$guest && exit $$checked
	cargo test --locked --workspace

checked:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --workspace
	cargo metadata --locked --format-version 1 --manifest-path tests/fuzz/Cargo.toml >/dev/null
	cargo build --locked --workspace --all-targets

# The action's image, built by an Engine of its own from Debian's packages, and the demo run through it as GitHub's runner would;
# then cancelled and killed steps, and CI's job that tries the action on itself. Leaves the Engine's images below the build's folder and nothing else.
image:
	@scripts/setup --image
	cargo build --locked --workspace
	$(BUILT)/debug/image

# Workflows, action.yml and examples: sound, least-privileged, pinned, and in GitHub's grammar. Asks nothing of the network.
EXAMPLES := $(wildcard examples/*.yml)
CHECKERS := $(BUILT)/checkers/bin
SCHEMA := $(CHECKERS)/check-jsonschema --builtin-schema
workflows:
	@scripts/setup --checkers
	$(CHECKERS)/zizmor --offline --no-progress --persona=pedantic --strict-collection . $(EXAMPLES)
	$(SCHEMA) vendor.github-workflows .github/workflows/*.yml $(EXAMPLES)
	$(SCHEMA) vendor.github-actions action.yml
	$(SCHEMA) vendor.dependabot .github/dependabot.yml

# Medians of the same swap: a bash script over ssh, model-swap cold, model-swap warm. Wants a quiet machine.
# The binary is built as the image's is (.cargo/config.toml).
MUSL := $(shell uname -m)-unknown-linux-musl
bench: setup
	@scripts/setup --musl
	cargo build --locked --workspace --release
	cargo build --locked --release --target $(MUSL) --bin model-swap
	$(BUILT)/release/bench $(BUILT)/$(MUSL)/release/model-swap

# N lives of throwaway servers with faults at random moments, each from a seed; SEED=… lives one again.
N ?= 20
soak: setup
	@scripts/setup --guest
	cargo build --locked --workspace
	$(BUILT)/debug/soak --lives $(N) $(if $(SEED),--seed $(SEED))

# Looks for input that breaks what reads configuration, nginx's files, the wire, journals and metrics: SECONDS for each.
SECONDS ?= 600
fuzz:
	@scripts/setup --fuzz
	scripts/fuzz $(SECONDS)

# Licences, advisories, banned crates and sources of every dependency (deny.toml). Needs the network.
audit: setup
	cargo deny --version >/dev/null 2>&1 || cargo install cargo-deny --locked
	cargo deny --locked check

setup:
	@scripts/setup
