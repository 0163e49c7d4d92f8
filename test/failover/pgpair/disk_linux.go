package pgpair

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// CanMount says why no disk of a size of its own can be made here; nil = it can.
func CanMount() error {
	dir, err := os.MkdirTemp("", "billing-mount-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		return fmt.Errorf("only root may mount a small disk: %w", err)
	}
	return syscall.Unmount(dir, 0)
}

func (p *Pair) mount(mb int) error {
	if err := syscall.Mount("tmpfs", p.Primary.dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=0711", mb)); err != nil {
		return fmt.Errorf("mount a disk of %d MB: %w", mb, err)
	}
	p.mounted = p.Primary.dir
	return nil
}

func (p *Pair) unmount() error {
	if p.mounted == "" {
		return nil
	}
	return syscall.Unmount(p.mounted, syscall.MNT_DETACH)
}

func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) }
