import { describe, expect, test } from 'vitest';
import {
  DEFAULT_CONTROLS,
  flipHeldBackBy,
  isOpen,
  parseControls,
  parseWindow,
  windowText,
} from '../../topology/migration-controls.js';

describe('a flip window', () => {
  test.each([
    ['02:00-04:00', '2026-01-10T01:59:59Z', false],
    ['02:00-04:00', '2026-01-10T02:00:00Z', true],
    ['02:00-04:00', '2026-01-10T03:59:59Z', true],
    ['02:00-04:00', '2026-01-10T04:00:00Z', false],
    ['22:30-01:00', '2026-01-10T22:30:00Z', true],
    ['22:30-01:00', '2026-01-10T00:59:00Z', true],
    ['22:30-01:00', '2026-01-10T01:00:00Z', false],
    ['00:00-00:30', '2026-01-10T00:00:00Z', true],
    // An hour earlier by UTC in summer.
    ['02:00-04:00 Europe/Vienna', '2026-01-10T01:30:00Z', true],
    ['02:00-04:00 Europe/Vienna', '2026-07-10T01:30:00Z', true],
    ['02:00-04:00 Europe/Vienna', '2026-07-10T00:30:00Z', true],
    ['02:00-04:00 Europe/Vienna', '2026-01-10T00:30:00Z', false],
  ])('%s at %s: %s', (window, now, open) => {
    expect(isOpen(parseWindow(window), new Date(now))).toBe(open);
  });

  test.each(['2-4', '02:00', '24:00-02:00', '02:60-03:00', '02:00-02:00', '02:00-04:00 Vienna', ''])(
    'is not "%s"',
    (text) => {
      expect(() => parseWindow(text)).toThrow(/time of the day|never open|no time zone/);
    },
  );

  test('is printed as it is read', () => {
    const window = parseWindow(' 22:30 - 01:00  America/New_York ');
    expect(windowText(window)).toBe('22:30-01:00 America/New_York');
    expect(parseWindow(windowText(window))).toEqual(window);
  });
});

describe('controls', () => {
  test('are as by default when nothing is said, and keep what is', () => {
    expect(parseControls({})).toEqual(DEFAULT_CONTROLS);
    expect(DEFAULT_CONTROLS.auto).toBe(true);
    const flipWindow = parseWindow('02:00-04:00');
    expect(parseControls({ auto: false, flipWindow, newer: 1 })).toEqual({
      ...DEFAULT_CONTROLS,
      auto: false,
      flipWindow,
    });
  });

  test('that are damaged are named', () => {
    expect(() => parseControls({ auto: 'yes' })).toThrow(/damaged: auto/);
    expect(() => parseControls({ flipWindow: { from: '1', to: '02:00', timeZone: 'UTC' } })).toThrow(/flipWindow.from/);
  });

  test('say what a flip waits for', () => {
    const night = { ...DEFAULT_CONTROLS, flipWindow: parseWindow('02:00-04:00') };
    const noon = new Date('2026-01-10T12:00:00Z');
    expect(flipHeldBackBy(DEFAULT_CONTROLS, noon)).toBeNull();
    expect(flipHeldBackBy({ ...DEFAULT_CONTROLS, auto: false }, noon)).toMatch(/somebody/);
    expect(flipHeldBackBy(night, noon)).toMatch(/02:00-04:00 UTC/);
    expect(flipHeldBackBy({ ...night, auto: false }, new Date('2026-01-10T03:00:00Z'))).toBeNull();
    expect(flipHeldBackBy({ ...night, flipRequested: true }, noon)).toBeNull();
  });
});
