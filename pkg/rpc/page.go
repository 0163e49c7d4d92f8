package rpc

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// pageTokenMax is the longest token, in bytes, that is looked at.
const pageTokenMax = 1024

// EncodePageToken packs where the next page begins. The value must be one that encoding/json can write.
func EncodePageToken(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("page token %T: %v", v, err)) // the type is the programmer's, never the caller's
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

// DecodePageToken unpacks a token into what it was made from. The empty token leaves it as it is; a token that does not read as the
// type is a violation of the field pageToken.
func DecodePageToken(token string, into any) error {
	if token == "" {
		return nil
	}
	err := errors.New("too long")
	if len(token) <= pageTokenMax {
		err = decodePageToken(token, into)
	}
	if err != nil {
		return Invalid(Violation{Field: "pageToken", Rule: "page_token", Value: token}).Because(err)
	}
	return nil
}

func decodePageToken(token string, into any) error {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil {
		return err
	}
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one value")
	}
	return nil
}

// compact drops the white space between tokens.
func compact(raw []byte) ([]byte, error) {
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
