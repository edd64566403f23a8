package uboot

import "maps"
import "slices"

// Set changes variables as the methods of Slots do, in one commit.
func (s *Slots) Set(vars map[string]string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.env.update(func(e, _ *Env, _ bool) error {
		for _, name := range slices.Sorted(maps.Keys(vars)) {
			if err := e.Set(name, vars[name]); err != nil {
				return err
			}
		}
		return nil
	})
}

// All returns the variables that count.
func (s *Slots) All() (map[string]string, error) {
	c, err := s.env.load()
	if err != nil {
		return nil, err
	}
	return c.env[c.newest].All(), nil
}
