package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// release is a set of archives to write.
type release struct {
	version  string
	time     time.Time // of all that is in the archives
	dir      string
	programs []program
	files    []string // in each archive, beside the program
}

// program is the program that goes into the archive of one architecture.
type program struct{ arch, path string }

func (r release) write() error {
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return err
	}
	var sums []string
	for _, p := range r.programs {
		name := fmt.Sprintf("flannel-%s-linux-%s.tar.gz", r.version, p.arch)
		text, err := r.archive(append([]string{p.path}, r.files...))
		if err != nil {
			return fmt.Errorf("making %s: %w", name, err)
		}
		if err := r.put(name, text); err != nil {
			return err
		}
		// The form that sha256sum reads and writes.
		sums = append(sums, fmt.Sprintf("%x  %s\n", sha256.Sum256(text), name))
	}
	slices.SortFunc(sums, func(a, b string) int { return strings.Compare(a[2*sha256.Size:], b[2*sha256.Size:]) })
	return r.put("SHA256SUMS", []byte(strings.Join(sums, "")))
}

func (r release) put(name string, text []byte) error {
	path := filepath.Join(r.dir, name)
	if err := os.WriteFile(path, text, 0o644); err != nil {
		return err
	}
	fmt.Println(path)
	return nil
}

// archive packs files by their base names, in order of these.
func (r release) archive(files []string) ([]byte, error) {
	slices.SortFunc(files, func(a, b string) int { return strings.Compare(filepath.Base(a), filepath.Base(b)) })
	var b bytes.Buffer
	// The header of gzip stays as it is, without a name and a time.
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	t := tar.NewWriter(z)
	for _, f := range files {
		if err := r.add(t, f); err != nil {
			return nil, err
		}
	}
	if err := t.Close(); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func (r release) add(t *tar.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	// No owner: whoever unpacks it as root gets files of root's.
	err = t.WriteHeader(&tar.Header{
		Format:   tar.FormatUSTAR,
		Typeflag: tar.TypeReg,
		Name:     filepath.Base(path),
		Size:     info.Size(),
		Mode:     mode(info),
		ModTime:  r.time,
	})
	if err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}
