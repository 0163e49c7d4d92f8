package pgpair

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// ballast is the file that fills the disk.
const ballast = "ballast"

// FillDisk writes until the disk of the primary's data has no room left. It needs Options.DiskMB.
func (p *Pair) FillDisk() error {
	if p.mounted == "" {
		return errors.New("the primary has no disk of its own")
	}
	f, err := os.OpenFile(filepath.Join(p.mounted, ballast), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for size := 1 << 20; size >= 512; { // in ever smaller pieces: not a page is left
		if _, err := f.Write(make([]byte, size)); isFull(err) {
			size /= 2
		} else if err != nil {
			return fmt.Errorf("fill the disk: %w", err)
		}
	}
	return nil
}

// FreeDisk gives the room back.
func (p *Pair) FreeDisk() error { return os.Remove(filepath.Join(p.mounted, ballast)) }
