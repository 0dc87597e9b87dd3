// A client of the t2v-edge live server, version 1 of its protocol (docs/protocol.md). No Unity in here: it runs and is
// tested in any .NET. T2VStream.cs puts its frames on a material.
using System;
using System.Collections.Generic;
using System.Globalization;
using System.Net.WebSockets;
using System.Text;
using System.Threading;
using System.Threading.Tasks;

namespace T2VEdge
{
    /// <summary>What to ask the server for; 0 and null leave it to the server.</summary>
    public sealed class T2VSettings
    {
        public string Token;
        public string Format = "jpeg";  // or raw; Unity decodes no WebP
        public int Fps, Width, Height, Quality = 85;
    }

    public sealed class T2VFrame
    {
        public const int HeaderBytes = 40, MostBytes = 1 << 26;

        public int Format, Width, Height;  // Format: 0 raw, 1 JPEG, 2 WebP
        public uint Generation, Sequence;
        public double Seconds;             // since the stream's start
        public byte[] Data;                // raw: Height rows of Width RGB pixels, from the top

        public bool IsRaw { get { return Format == 0; } }

        /// <summary>The frame of a binary message; newData gives an array of that many bytes.
        /// Throws FormatException where it is none.</summary>
        public static T2VFrame Read(byte[] message, int count, Func<int, byte[]> newData)
        {
            if (count < HeaderBytes || Number(message, 0, 4) != 0x46563254 || message[4] != 1)
                throw new FormatException("a binary message is no frame of version 1");
            ulong start = Number(message, 6, 2), size = Number(message, 36, 4), pts = Number(message, 16, 8);
            ulong num = Number(message, 24, 4), den = Number(message, 28, 4);
            var frame = new T2VFrame
            {
                Format = message[5],
                Generation = (uint)Number(message, 8, 4),
                Sequence = (uint)Number(message, 12, 4),
                Width = (int)Number(message, 32, 2),
                Height = (int)Number(message, 34, 2),
            };
            bool sides = frame.Width >= 1 && frame.Width <= 4096 && frame.Height >= 1 && frame.Height <= 4096;
            if (frame.Format > 2 || pts >> 53 != 0 || num == 0 || den == 0 || !sides)
                throw new FormatException("a frame's header has a value out of range");
            bool fits = start >= HeaderBytes && size >= 1 && start + size == (ulong)count;
            if (!fits || (frame.IsRaw && size != 3ul * (ulong)frame.Width * (ulong)frame.Height))
                throw new FormatException("a frame is not as long as its header says");
            frame.Seconds = (double)pts * num / den;
            frame.Data = newData((int)size);
            Buffer.BlockCopy(message, (int)start, frame.Data, 0, (int)size);
            return frame;
        }

        static ulong Number(byte[] message, int at, int bytes)
        {
            ulong value = 0;
            for (int i = bytes - 1; i >= 0; i--) value = value << 8 | message[at + i];
            return value;
        }
    }

    /// <summary>Stays connected while RunAsync runs, and keeps the newest frame. All but RunAsync returns at once and
    /// may be called from any thread.</summary>
    public sealed class T2VClient : IDisposable
    {
        const int MostText = 16384;
        static readonly TimeSpan AskAfter = TimeSpan.FromSeconds(10), LostAfter = TimeSpan.FromSeconds(30);
        static readonly string[] ForGood = { "token", "version", "hello", "bad_value" };

        readonly Uri url;
        readonly T2VSettings settings;
        readonly SemaphoreSlim sending = new SemaphoreSlim(1), captionCame = new SemaphoreSlim(0, 1);
        T2VFrame newest;
        byte[] spare;
        string wanted;
        long segment, heard;
        int generation = -1;
        volatile bool welcomed;

        public T2VClient(string url, T2VSettings settings = null)
        {
            this.url = new Uri(url);
            this.settings = settings ?? new T2VSettings();
            Status = "not connected";
        }

        /// <summary>For people: what is going on, or what went wrong last.</summary>
        public string Status { get; private set; }

        /// <summary>What the server shows, as it says; null before the first caption.</summary>
        public string Showing { get; private set; }

        /// <summary>Say what should be seen. While there is no connection, it is said with the next.</summary>
        public void SetCaption(string text)
        {
            Volatile.Write(ref wanted, text);
            Wake();
        }

        /// <summary>The newest frame, each once; no frame of an older caption than the one that is shown.</summary>
        public bool TryTakeFrame(out T2VFrame frame)
        {
            frame = Interlocked.Exchange(ref newest, null);
            if (frame != null && frame.Generation < Volatile.Read(ref generation))
            {
                Recycle(frame);
                frame = null;
            }
            return frame != null;
        }

        /// <summary>Give a frame back once it is shown: the next raw one takes its memory.</summary>
        public void Recycle(T2VFrame frame)
        {
            Volatile.Write(ref spare, frame.Data);
        }

        /// <summary>Connect, and again whenever the connection is lost, until stop. Ends early, with Status saying why,
        /// only where another try cannot help. Run it off the main thread.</summary>
        public async Task RunAsync(CancellationToken stop)
        {
            double waitSeconds = 0.25;
            while (!stop.IsCancellationRequested)
            {
                long begun = Now();
                try
                {
                    await PlayAsync(stop).ConfigureAwait(false);
                    Status = "the server stops";
                }
                catch (T2VRefusal refusal)
                {
                    Status = refusal.Message;
                    if (Array.IndexOf(ForGood, refusal.Code) >= 0) return;
                }
                catch (Exception error)
                {
                    if (stop.IsCancellationRequested) break;
                    Status = error is FormatException ? error.Message : "no connection: " + error.Message;
                }
                if (Now() - begun > TimeSpan.TicksPerSecond * 10) waitSeconds = 0.25;
                try { await Task.Delay(TimeSpan.FromSeconds(waitSeconds), stop).ConfigureAwait(false); }
                catch (OperationCanceledException) { }
                waitSeconds = Math.Min(8, 2 * waitSeconds);
            }
            Status = "stopped";
        }

        public void Dispose()
        {
            Interlocked.Exchange(ref newest, null);
        }

        async Task PlayAsync(CancellationToken stop)
        {
            Status = "connecting";
            using (var socket = new ClientWebSocket())
            using (var end = CancellationTokenSource.CreateLinkedTokenSource(stop))
            {
                using (var limit = CancellationTokenSource.CreateLinkedTokenSource(stop))
                {
                    limit.CancelAfter(TimeSpan.FromSeconds(10));
                    welcomed = false;
                    await socket.ConnectAsync(url, limit.Token).ConfigureAwait(false);
                    await SendAsync(socket, Hello(), limit.Token).ConfigureAwait(false);
                }
                Volatile.Write(ref heard, Now());
                Volatile.Write(ref generation, -1);
                var work = new[]
                {
                    ReceiveAsync(socket, end.Token), SayAsync(socket, end.Token), WatchAsync(socket, end.Token),
                };
                Task first = await Task.WhenAny(work).ConfigureAwait(false);
                if (stop.IsCancellationRequested) await LeaveAsync(socket).ConfigureAwait(false);
                end.Cancel();
                socket.Abort();
                foreach (Task task in work)
                {
                    try { await task.ConfigureAwait(false); }
                    catch (Exception) when (task != first) { }
                }
            }
        }

        async Task ReceiveAsync(ClientWebSocket socket, CancellationToken end)
        {
            var buffer = new byte[65536];
            while (true)
            {
                int count = 0;
                WebSocketReceiveResult part;
                do
                {
                    // The buffer grows with what has come, and not with what somebody says will come.
                    if (count == buffer.Length)
                    {
                        if (count >= T2VFrame.HeaderBytes + T2VFrame.MostBytes)
                            throw new FormatException("the server sent too large a message");
                        Array.Resize(ref buffer, Math.Min(2 * count, T2VFrame.HeaderBytes + T2VFrame.MostBytes));
                    }
                    part = await socket.ReceiveAsync(new ArraySegment<byte>(buffer, count, buffer.Length - count), end)
                        .ConfigureAwait(false);
                    if (part.MessageType == WebSocketMessageType.Close) return;
                    count += part.Count;
                    if (part.MessageType == WebSocketMessageType.Text && count > MostText)
                        throw new FormatException("the server sent too long a text");
                }
                while (!part.EndOfMessage);
                Volatile.Write(ref heard, Now());
                if (part.MessageType == WebSocketMessageType.Text) Hear(Encoding.UTF8.GetString(buffer, 0, count));
                else
                {
                    T2VFrame passed = Interlocked.Exchange(ref newest, T2VFrame.Read(buffer, count, NewData));
                    if (passed != null) Recycle(passed);
                }
            }
        }

        void Hear(string text)
        {
            Dictionary<string, string> message = T2VJson.Read(text);
            string type = Value(message, "type");
            if (type == "welcome")
            {
                Status = "connected to " + Value(message, "bundle");
                welcomed = true;
                Wake();  // a new session has heard nothing yet
            }
            else if (type == "showing" || type == "state")
            {
                int number;
                string said = Value(message, "generation");
                if (!int.TryParse(said, NumberStyles.None, CultureInfo.InvariantCulture, out number))
                    throw new FormatException("a generation is out of range");
                Volatile.Write(ref generation, Math.Max(generation, number));
                if (type == "showing") Showing = Value(message, "text");
            }
            else if (type == "error")
            {
                Status = Value(message, "message") + "; " + Value(message, "remedy");
                if (Value(message, "fatal") == "true") throw new T2VRefusal(Value(message, "code"), Status);
            }
        }

        /// <summary>Says the newest caption whenever there is one.</summary>
        async Task SayAsync(ClientWebSocket socket, CancellationToken end)
        {
            while (true)
            {
                await captionCame.WaitAsync(end).ConfigureAwait(false);
                string text = Volatile.Read(ref wanted);
                if (string.IsNullOrEmpty(text) || !welcomed) continue;
                string number = (segment++).ToString(CultureInfo.InvariantCulture);
                string message = "{\"type\":\"caption\",\"segment\":" + number + ",\"revision\":0,\"final\":true,"
                    + "\"text\":" + T2VJson.Quote(text) + "}";
                await SendAsync(socket, message, end).ConfigureAwait(false);
            }
        }

        /// <summary>A connection may be dead and not say so: a server that is quiet is asked, and then left.</summary>
        async Task WatchAsync(ClientWebSocket socket, CancellationToken end)
        {
            while (true)
            {
                await Task.Delay(5000, end).ConfigureAwait(false);
                TimeSpan quiet = TimeSpan.FromTicks(Now() - Volatile.Read(ref heard));
                if (quiet > LostAfter) throw new FormatException("the server does not answer any more");
                if (quiet > AskAfter) await SendAsync(socket, "{\"type\":\"stats\"}", end).ConfigureAwait(false);
            }
        }

        async Task LeaveAsync(ClientWebSocket socket)
        {
            try
            {
                using (var limit = new CancellationTokenSource(1000))
                {
                    const string bye = "{\"type\":\"bye\",\"reason\":\"done\"}";
                    await SendAsync(socket, bye, limit.Token).ConfigureAwait(false);
                    await socket.CloseOutputAsync(WebSocketCloseStatus.NormalClosure, "done", limit.Token)
                        .ConfigureAwait(false);
                }
            }
            catch (Exception) { }  // then it is closed without a word
        }

        async Task SendAsync(ClientWebSocket socket, string text, CancellationToken end)
        {
            await sending.WaitAsync(end).ConfigureAwait(false);  // ClientWebSocket sends one message at a time
            try
            {
                var data = new ArraySegment<byte>(Encoding.UTF8.GetBytes(text));
                await socket.SendAsync(data, WebSocketMessageType.Text, true, end).ConfigureAwait(false);
            }
            finally { sending.Release(); }
        }

        string Hello()
        {
            var text = new StringBuilder("{\"type\":\"hello\",\"versions\":[1]");
            if (!string.IsNullOrEmpty(settings.Token)) text.Append(",\"token\":").Append(T2VJson.Quote(settings.Token));
            if (settings.Format != null) text.Append(",\"format\":").Append(T2VJson.Quote(settings.Format));
            if (settings.Fps > 0) text.Append(",\"fps\":").Append(settings.Fps);
            if (settings.Width > 0) text.AppendFormat(",\"size\":[{0},{1}]", settings.Width, settings.Height);
            return text.Append(",\"quality\":").Append(settings.Quality).Append('}').ToString();
        }

        void Wake()
        {
            try { captionCame.Release(); }
            catch (SemaphoreFullException) { }  // it is awake already, and will say the newest
        }

        byte[] NewData(int size)
        {
            byte[] data = Interlocked.Exchange(ref spare, null);
            return data != null && data.Length == size ? data : new byte[size];
        }

        static string Value(Dictionary<string, string> message, string key)
        {
            string value;
            return message.TryGetValue(key, out value) ? value : "";
        }

        static long Now()
        {
            return DateTime.UtcNow.Ticks;
        }

        sealed class T2VRefusal : Exception
        {
            public readonly string Code;

            public T2VRefusal(string code, string message) : base(message)
            {
                Code = code;
            }
        }
    }
}
