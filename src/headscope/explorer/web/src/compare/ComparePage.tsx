export function ComparePage() {
  return <p class="soft">Not built yet.</p>;
}
