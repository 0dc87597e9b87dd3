// Shows a live stream on the object's material. See README.md for how to put it on a quad.
using System.Threading;
using System.Threading.Tasks;
using T2VEdge;
using UnityEngine;

[RequireComponent(typeof(Renderer))]
public sealed class T2VStream : MonoBehaviour
{
    [Tooltip("Where t2v-edge serve listens.")]
    [SerializeField] string url = "ws://127.0.0.1:8765/live";
    [Tooltip("The server's token, where it asks for one. What is typed here is in the build.")]
    [SerializeField] string token = "";
    [SerializeField] string caption = "a person is waving";
    [SerializeField, Range(1, 120)] int fps = 30;
    [Tooltip("Pixels instead of JPEG: more network, no decoding on the main thread.")]
    [SerializeField] bool raw;

    T2VClient client;
    CancellationTokenSource stop;
    Texture2D texture;
    Material material;

    public string Token { set { token = value; } }

    /// <summary>What should be seen; from any thread, at any time.</summary>
    public void SetCaption(string text)
    {
        caption = text;
        if (client != null) client.SetCaption(text);
    }

    /// <summary>For a label under the picture: the caption that is shown, or what went wrong.</summary>
    public string Label
    {
        get { return client == null ? "" : client.Showing ?? client.Status; }
    }

    void OnEnable()
    {
        material = GetComponent<Renderer>().material;
        client = new T2VClient(url, new T2VSettings { Token = token, Fps = fps, Format = raw ? "raw" : "jpeg" });
        client.SetCaption(caption);
        stop = new CancellationTokenSource();
        T2VClient running = client;
        CancellationToken ends = stop.Token;
        Task.Run(() => running.RunAsync(ends));
    }

    void OnDisable()
    {
        stop.Cancel();
        client.Dispose();
        client = null;
        Destroy(texture);
        texture = null;
    }

    // Once a display frame. The network runs elsewhere, and frames that nobody took are gone: this never waits.
    void Update()
    {
        T2VFrame frame;
        if (!client.TryTakeFrame(out frame)) return;
        if (frame.IsRaw)
        {
            Prepare(frame.Width, frame.Height);
            texture.LoadRawTextureData(frame.Data);
            texture.Apply(false);
        }
        else
        {
            Prepare(2, 2);  // LoadImage gives the texture the picture's size
            texture.LoadImage(frame.Data, false);
        }
        // Raw rows come from the top, Unity's textures begin at the bottom; LoadImage sees to that itself.
        material.mainTextureScale = new Vector2(1, frame.IsRaw ? -1 : 1);
        material.mainTextureOffset = new Vector2(0, frame.IsRaw ? 1 : 0);
        client.Recycle(frame);
    }

    void Prepare(int width, int height)
    {
        bool fits = texture != null && (!raw || (texture.width == width && texture.height == height));
        if (fits) return;
        if (texture != null) Destroy(texture);
        texture = new Texture2D(width, height, TextureFormat.RGB24, false);
        texture.wrapMode = TextureWrapMode.Clamp;
        material.mainTexture = texture;
    }
}
