package modbus

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
)

// RoleOID is the certificate extension that carries a client's role as an ASN.1
// UTF8String (security, 8.4, role extension of the X.509v3 certificate).
var RoleOID = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 50316, 802, 1}

// Role returns the role that a certificate carries, "" if none. More than one, and one
// that is not a UTF8String, are refused.
func Role(cert *x509.Certificate) (string, error) {
	role, found := "", false
	for _, extension := range cert.Extensions {
		if !extension.Id.Equal(RoleOID) {
			continue
		}
		if found {
			return "", errors.New("read role of certificate: it has two role extensions, want one")
		}
		found = true
		var value asn1.RawValue
		rest, err := asn1.Unmarshal(extension.Value, &value)
		if err != nil {
			return "", fmt.Errorf("read role of certificate: %w", err)
		}
		if len(rest) > 0 || value.Class != asn1.ClassUniversal || value.Tag != asn1.TagUTF8String || value.IsCompound {
			return "", fmt.Errorf("read role of certificate: got ASN.1 class %d, tag %d and %d bytes after it, want one UTF8String", value.Class, value.Tag, len(rest))
		}
		if _, err := asn1.UnmarshalWithParams(extension.Value, &role, "utf8"); err != nil {
			return "", fmt.Errorf("read role of certificate: %w", err)
		}
	}
	return role, nil
}

// ServerTLS is the TLS of a server, for tls.NewListener: TLS 1.2 or newer, and only
// clients whose certificate one of clientCAs has signed and whose role can be read.
func ServerTLS(certificate tls.Certificate, clientCAs *x509.CertPool) (*tls.Config, error) {
	if clientCAs == nil {
		// crypto/tls would ask the system's roots, which have signed half the world.
		return nil, errors.New("configure Modbus TLS: no authorities for clients are given, and without them anybody is let in")
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{certificate},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    clientCAs,
		VerifyConnection: func(state tls.ConnectionState) error {
			_, err := roleOf(state)
			return err
		},
	}, nil
}

// ClientTLS is the TLS of a client: it shows its certificate, which carries its role,
// and believes only servers that one of serverCAs has signed. name is what the server's
// certificate must be for; "": the host of the address that is dialled.
func ClientTLS(certificate tls.Certificate, serverCAs *x509.CertPool, name string) (*tls.Config, error) {
	if serverCAs == nil {
		return nil, errors.New("configure Modbus TLS: no authorities for servers are given; name those that sign this site's devices")
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{certificate},
		RootCAs:      serverCAs,
		ServerName:   name,
	}, nil
}

func roleOf(state tls.ConnectionState) (string, error) {
	if len(state.PeerCertificates) == 0 {
		return "", errors.New("read role: the client showed no certificate")
	}
	return Role(state.PeerCertificates[0])
}
