// As much JSON as the protocol needs, so that the client compiles anywhere: an object's values by key, as text.
using System;
using System.Collections.Generic;
using System.Globalization;
using System.Text;

namespace T2VEdge
{
    public static class T2VJson
    {
        const int MostLevels = 8;

        public static string Quote(string text)
        {
            var quoted = new StringBuilder("\"");
            foreach (char c in text)
            {
                if (c == '"' || c == '\\') quoted.Append('\\').Append(c);
                else if (c < ' ') quoted.AppendFormat(CultureInfo.InvariantCulture, "\\u{0:x4}", (int)c);
                else quoted.Append(c);
            }
            return quoted.Append('"').ToString();
        }

        /// <summary>The text, numbers and flags of an object; null and what is nested is skipped.
        /// Throws FormatException for what is no object of at most eight levels.</summary>
        public static Dictionary<string, string> Read(string text)
        {
            var values = new Dictionary<string, string>();
            int at = 0;
            Take(text, ref at, '{');
            ReadMembers(text, ref at, 1, values);
            Skip(text, ref at);
            if (at != text.Length) throw Wrong();
            return values;
        }

        static FormatException Wrong()
        {
            return new FormatException("the server sent a text that is no JSON object");
        }

        static void Skip(string text, ref int at)
        {
            while (at < text.Length && " \t\r\n".IndexOf(text[at]) >= 0) at++;
        }

        static char Next(string text, ref int at)
        {
            if (at >= text.Length) throw Wrong();
            return text[at++];
        }

        static void Take(string text, ref int at, char wanted)
        {
            Skip(text, ref at);
            if (Next(text, ref at) != wanted) throw Wrong();
        }

        static bool Comes(string text, ref int at, char wanted)
        {
            Skip(text, ref at);
            if (at >= text.Length || text[at] != wanted) return false;
            at++;
            return true;
        }

        static void ReadMembers(string text, ref int at, int level, Dictionary<string, string> values)
        {
            if (Comes(text, ref at, '}')) return;
            do
            {
                Take(text, ref at, '"');
                string key = ReadString(text, ref at);
                Take(text, ref at, ':');
                string value = ReadValue(text, ref at, level);
                if (value != null && values != null) values[key] = value;
            }
            while (Comes(text, ref at, ','));
            Take(text, ref at, '}');
        }

        static string ReadValue(string text, ref int at, int level)
        {
            if (level > MostLevels) throw Wrong();
            if (Comes(text, ref at, '"')) return ReadString(text, ref at);
            if (Comes(text, ref at, '{'))
            {
                ReadMembers(text, ref at, level + 1, null);
                return null;
            }
            if (Comes(text, ref at, '['))
            {
                if (Comes(text, ref at, ']')) return null;
                do ReadValue(text, ref at, level + 1);
                while (Comes(text, ref at, ','));
                Take(text, ref at, ']');
                return null;
            }
            int start = at;
            while (at < text.Length && (char.IsLetterOrDigit(text[at]) || "+-.".IndexOf(text[at]) >= 0)) at++;
            if (at == start) throw Wrong();
            string word = text.Substring(start, at - start);
            return word == "null" ? null : word;
        }

        static string ReadString(string text, ref int at)
        {
            var found = new StringBuilder();
            while (true)
            {
                char c = Next(text, ref at);
                if (c == '"') return found.ToString();
                if (c < ' ') throw Wrong();
                if (c != '\\')
                {
                    found.Append(c);
                    continue;
                }
                c = Next(text, ref at);
                int known = "\"\\/bfnrt".IndexOf(c);
                if (known >= 0) found.Append("\"\\/\b\f\n\r\t"[known]);
                else if (c == 'u' && at + 4 <= text.Length && ushort.TryParse(text.Substring(at, 4),
                    NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out ushort unit))
                {
                    found.Append((char)unit);
                    at += 4;
                }
                else throw Wrong();
            }
        }
    }
}
