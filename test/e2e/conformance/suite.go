//go:build tools

// Pins the OCI's conformance suite, which .ci/run builds here by `go test -c`, and the one module that only its
// tests need.
package conformance

import (
	_ "github.com/onsi/gomega"
	_ "github.com/opencontainers/distribution-spec/conformance"
)
