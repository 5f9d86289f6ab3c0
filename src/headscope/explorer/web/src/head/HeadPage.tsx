export function HeadPage() {
  return <p class="soft">Not built yet.</p>;
}
