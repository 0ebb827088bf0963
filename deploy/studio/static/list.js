// A list of which only what is seen is mounted, so that a thousand entries scroll like ten.
import { html, useCallback, useLayoutEffect, useRef, useState } from "./view.js";

const AROUND = 2; // rows above and below what is seen

// Entries of one height in as many columns as fit; `show(index)` returns one's content; `seen(first, last)` is told what is mounted.
export function VirtualList({ count, height, least = Infinity, label, show, seen }) {
  const frame = useRef(null);
  const [range, setRange] = useState({ first: 0, last: 0, columns: 1 });

  const measure = useCallback(() => {
    const box = frame.current?.getBoundingClientRect();
    if (!box) return;
    const columns = Math.max(1, Math.floor(box.width / least) || 1), rows = Math.ceil(count / columns);
    const above = Math.max(0, -box.top), top = Math.max(0, Math.min(rows, Math.floor(above / height)) - AROUND);
    const bottom = Math.min(rows, Math.ceil((above + window.innerHeight) / height) + AROUND);
    const next = { first: top * columns, last: Math.min(count, bottom * columns), columns };
    setRange(now => now.first === next.first && now.last === next.last && now.columns === next.columns ? now : next);
  }, [count, height, least]);

  useLayoutEffect(() => {
    measure();
    let asked = 0;
    const later = () => { asked ||= requestAnimationFrame(() => { asked = 0; measure(); }); };
    const sized = new ResizeObserver(later);
    sized.observe(frame.current);
    addEventListener("scroll", later, { passive: true });
    addEventListener("resize", later);
    return () => {
      cancelAnimationFrame(asked);
      sized.disconnect();
      removeEventListener("scroll", later);
      removeEventListener("resize", later);
    };
  }, [measure]);
  useLayoutEffect(() => { seen?.(range.first, range.last); }, [range.first, range.last, seen]);

  // Arrow keys move from entry to entry, also to those that are not mounted yet.
  const keys = event => {
    const entry = event.target.closest?.("[data-index]");
    const typing = /^(INPUT|SELECT)$/.test(event.target.tagName) && event.target.type !== "checkbox";
    if (!entry || typing) return;
    const at = Number(entry.dataset.index), { columns } = range;
    const target = {
      ArrowDown: at + columns, ArrowUp: at - columns, ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: count - 1,
    }[event.key];
    if (target === undefined || target < 0 || target >= count) return;
    event.preventDefault();
    focusOn(target);
  };
  const focusOn = index => {
    const box = frame.current.getBoundingClientRect(), top = Math.floor(index / range.columns) * height;
    const above = window.scrollY + box.top + top, margin = height / 2, hidden = above + height + margin - window.innerHeight;
    if (above < window.scrollY + margin) window.scrollTo(0, above - margin);
    else if (window.scrollY < hidden) window.scrollTo(0, hidden);
    let tries = 0;
    const focus = () => {
      const link = frame.current?.querySelector(`[data-index="${index}"] a`);
      if (link) link.focus({ preventScroll: true });
      else if (tries++ < 10) requestAnimationFrame(focus);
    };
    requestAnimationFrame(focus);
  };

  const columns = range.columns, mounted = [];
  for (let index = Math.min(range.first, count); index < Math.min(range.last, count); index++) {
    mounted.push(html`<div key=${index} data-index=${index} class="entry" role="listitem" aria-setsize=${count} aria-posinset=${index + 1}
      style=${{ height: `${height}px` }}>${show(index)}</div>`);
  }
  return html`<div class="virtual" ref=${frame} onKeyDown=${keys} style=${{ height: `${Math.ceil(count / columns) * height}px` }}>
    <div role="list" aria-label=${label} class="mounted" style=${{
      transform: `translateY(${Math.floor(range.first / columns) * height}px)`, gridTemplateColumns: `repeat(${columns}, minmax(0, 1fr))`,
    }}>${mounted}</div></div>`;
}
